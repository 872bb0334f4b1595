"""The jobs: transfer (also with a saved embedding) and flow. Each phase frees what it loads."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from einops import rearrange
from torch import Tensor

from ditflow import video
from ditflow.backbone.runner import Grid, Until
from ditflow.backbone.text import Texts
from ditflow.denoising import Denoised, Denoising
from ditflow.device import computing
from ditflow.embeddings import save_embeddings
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.prepare import clip_features
from ditflow.job import SUFFIXES, Job
from ditflow.progress import Progress
from ditflow.report.clip_flow import draw_flow
from ditflow.runs import Run
from ditflow.sampling import Step
from ditflow.settings import Settings
from ditflow.small.truth import true_flow_of

logger = logging.getLogger(__name__)


def transfer(settings: Settings, progress: Progress | None = None) -> Run:
    """Make a new video with the clip's motion and the prompt's content; returns the run folder.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    progress = progress or Progress()
    job = Job.begin(settings, progress, needs=("video", "prompt"))
    with computing(job.settings), job.room:
        texts, reference = job.texts(), job.encode()
        denoised = _denoise(job, texts, reference, progress)
        job.run.write_tensors("latents.safetensors", {"latents": denoised.latents, "reference": reference})
        if denoised.embeddings:
            save_embeddings(job.run, denoised.embeddings, denoised.facts)
        result = job.decode(denoised.latents)

    job.write("result", result)
    job.write("comparison", video.side_by_side(job.clip, result))
    job.end(losses=denoised.losses, skipped_optimisation_steps=denoised.skipped)
    suffix = SUFFIXES[job.settings.format]
    logger.info("result: %s, beside the clip: comparison%s", job.run.folder / f"result{suffix}", suffix)
    return job.run


def _denoise(job: Job, texts: Texts, reference: Tensor, progress: Progress) -> Denoised:
    settings = job.settings
    if job.clip.is_still and settings.rows == "moving":
        logger.warning("the clip shows no motion: there is nothing to transfer, the optimisation is left out")
        settings = replace(settings, guidance=False)

    def tell(step: Step) -> None:
        progress.step(f"loss {step.losses[-1]:.4f}" if step.losses else "")

    denoising = Denoising(settings, job.folder.config("scheduler"), texts, reference, tell)
    with job.meter.phase("denoise", settings.steps):
        return job.room.run("denoise", lambda: denoising.run(job.runner()))


def flow(settings: Settings, progress: Progress | None = None) -> Run:
    """Read a clip's motion flow in each guidance block: as tensors, as a sheet and as arrows over the frames.

    A made clip's true motion is drawn beside it.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    job = Job.begin(settings, progress or Progress(), needs=("video",), kind="flow")
    with computing(job.settings), job.room:
        texts, reference = job.texts(), job.encode()
        with job.meter.phase("flow"):
            read = job.room.run("flow", lambda: _read_flow(job, texts, reference))
    job.run.write_tensors(
        "flow.safetensors", {f"block_{block}": found for block, found in read.references.items()}
    )
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
