"""The jobs: transfer (also with a saved embedding), what goes on with one, and flow.

Each phase frees what it loads.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from einops import rearrange
from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import clip_features
from ditflow.jobs.session import Job, video_name
from ditflow.models.cogvideox.text import Texts
from ditflow.models.protocols import Grid, Until
from ditflow.pictures.clip_flow import draw_flow
from ditflow.progress import Progress
from ditflow.run_folder.checkpoint import StateWriter, clear_leftovers, read_state
from ditflow.run_folder.embeddings import save_embeddings
from ditflow.run_folder.run import LATENTS, Run, read_latents
from ditflow.sampling.denoising import Denoised, Denoising
from ditflow.sampling.loop import Step
from ditflow.settings import Settings
from ditflow.small.truth import true_flow_of

logger = logging.getLogger(__name__)


def transfer(settings: Settings, progress: Progress | None = None) -> Run:
    """Make a new video with the clip's motion and the prompt's content; returns the run folder.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    progress = progress or Progress()
    with Job.begin(settings, progress, needs=("video", "prompt")) as job:
        return _transfer(job, progress)


def resume(folder: Path, progress: Progress | None = None, memory: str | None = None) -> Run:
    """Go on with a transfer that was interrupted, to the result that it would have had.

    Raises DitflowError where its settings or weights have changed, its state is damaged or it is in use.
    """
    progress, run = progress or Progress(), Run.open(folder)
    if run.finished:
        logger.info("%s is finished: there is nothing to go on with", folder)
        clear_leftovers(run)
        return run
    with Job.reopen(run, progress, memory) as job:
        return _transfer(job, progress)


def decode(folder: Path, progress: Progress | None = None, memory: str | None = None) -> Run:
    """Make the videos of a transfer from its latents.

    Raises DitflowError where it has none, or has the videos already.
    """
    progress, run = progress or Progress(), Run.open(folder)
    if not (folder / LATENTS).is_file():
        raise DitflowError(
            f"{folder} has no {LATENTS}: `ditflow resume {run.quoted}` goes on with its denoising"
        )
    if not run.finished:
        return resume(folder, progress, memory)
    with Job.reopen(run, progress, memory, whole=True) as job:
        result = folder / video_name("result", job.settings)
        if result.exists():
            raise DitflowError(f"{result} is there already: move it away to have it made again")
        _, latents = read_latents(folder)
        _write_results(job, job.decode(latents))
    return run


def _transfer(job: Job, progress: Progress) -> Run:
    job.write_reference()
    texts, reference = job.texts(), job.encode()
    denoised = _denoise(job, texts, reference, progress)
    job.run.write_tensors(LATENTS, {"latents": denoised.latents, "reference": reference})
    if denoised.embeddings:
        save_embeddings(job.run, denoised.embeddings, denoised.facts)
    _write_results(job, job.decode(denoised.latents))
    job.end(losses=denoised.losses, skipped_optimisation_steps=denoised.skipped)
    return job.run


def _write_results(job: Job, result: video.Clip) -> None:
    job.write("result", result)
    job.write("comparison", video.side_by_side(job.clip, result))
    result, comparison = (video_name(name, job.settings) for name in ("result", "comparison"))
    logger.info("result: %s, beside the clip: %s", job.run.folder / result, comparison)


def _denoise(job: Job, texts: Texts, reference: Tensor, progress: Progress) -> Denoised:
    settings = job.settings
    if job.clip.is_still and settings.rows == "moving":
        logger.warning("the clip shows no motion: there is nothing to transfer, the optimisation is left out")
        settings = replace(settings, guidance=False)

    def tell(step: Step) -> None:
        progress.step(f"loss {step.losses[-1]:.4f}" if step.losses else "")
        states.put(denoising.state)

    denoising = Denoising(settings, job.folder.config("scheduler"), texts, reference, tell)
    denoising.state = read_state(job.kept) or denoising.state
    left = settings.steps - denoising.steps_done
    if not left:
        return denoising.result
    with (
        StateWriter(job.kept, len(denoising.state.embeddings)) as states,
        job.meter.phase("denoise", left),
    ):
        return job.room.run("denoise", lambda: denoising.run(job.runner()))


def flow(settings: Settings, progress: Progress | None = None) -> Run:
    """Read a clip's motion flow in each guidance block: as tensors, as a sheet and as arrows over the frames.

    A made clip's true motion is drawn beside it.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    with Job.begin(settings, progress or Progress(), needs=("video",), kind="flow") as job:
        job.write_reference()
        texts, reference = job.texts(), job.encode()
        with job.meter.phase("flow"):
            read = job.room.run("flow", lambda: _read_flow(job, texts, reference))
        tensors = {f"block_{block}": found for block, found in read.references.items()}
        job.run.write_tensors("flow.safetensors", tensors)
        for block, found in read.references.items():
            _draw(job, f"block_{block}", found.cpu().numpy(), read.grid)
        if (truth := true_flow_of(job.settings, read.grid)) is not None:
            _draw(job, "true", truth, read.grid)
        job.end()
        return job.run


def _draw(job: Job, name: str, flow: np.ndarray, grid: Grid) -> None:
    """Pictures of a flow [frames (query), frames (key), height * width, 2]."""
    sheet, arrows = draw_flow(job.clip, rearrange(flow, "q k (h w) c -> q k h w c", h=grid.height))
    job.run.write_picture(f"flow_{name}.png", sheet)
    job.write(f"arrows_{name}", arrows)


def _read_flow(job: Job, texts: Texts, reference: Tensor) -> FlowLoss:
    """The clip's flow, as the loss has it."""
    runner = job.runner()
    grid = runner.backbone.grid(reference)
    until = Until(FlowLoss.reads, job.settings.guidance_blocks)
    own = runner.backbone.embedding(grid)
    return FlowLoss(clip_features(runner, until, reference, texts.source_prompt, own), grid, job.settings)
