"""The transfer job, also with a saved embedding, and the resume and decode jobs, which continue one."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.jobs.given import transfer_needs
from ditflow.jobs.session import Job
from ditflow.models.protocols import Schedule, Texts
from ditflow.progress import Progress
from ditflow.run_folder.checkpoint import StateWriter, clear_leftovers, read_state
from ditflow.run_folder.embeddings import embedding_facts, save_embeddings
from ditflow.run_folder.run import LATENTS, Run, read_latents, video_name
from ditflow.sampling.denoising import Denoised, Denoising
from ditflow.sampling.loop import Step
from ditflow.settings import Settings

logger = logging.getLogger(__name__)


def transfer(settings: Settings, progress: Progress | None = None) -> Run:
    """Make a new video with the clip's motion and the prompt's content. Returns its run folder.

    Raises DitflowError (SettingsError for wrong settings) with one line that says what to do.
    """
    progress = progress or Progress()
    with Job.begin(settings, progress, needs=transfer_needs(settings)) as job:
        return _transfer(job, progress)


def resume(folder: Path | str, progress: Progress | None = None, memory: str | None = None) -> Run:
    """Continue an interrupted transfer. The result is the same as without the interruption.

    Raises DitflowError if its settings or weights have changed, its checkpoint is damaged or it is in use.
    """
    progress, run = progress or Progress(), Run.open(folder)
    if run.finished:
        logger.info("%s is finished: there is nothing to resume", folder)
        clear_leftovers(run)
        return run
    with Job.reopen(run, progress, memory) as job:
        return _transfer(job, progress)


def decode(folder: Path | str, progress: Progress | None = None, memory: str | None = None) -> Run:
    """Make the videos of a transfer from its latents.

    Raises DitflowError if it has no latents, or if the videos exist.
    """
    progress, run = progress or Progress(), Run.open(folder)
    folder = run.folder
    if not (folder / LATENTS).is_file():
        raise DitflowError(
            f"{folder} has no {LATENTS}, because denoising is not finished; continue it with "
            f"`ditflow resume {run.quoted}`"
        )
    if not run.finished:
        return resume(folder, progress, memory)
    with Job.reopen(run, progress, memory, finished=True) as job:
        for name in ("result", "comparison"):
            path = folder / video_name(name, job.settings)
            if path.exists() and (name == "result" or path.is_dir()):  # a comparison's file is replaced
                raise DitflowError(f"{path} exists: move it away first")
        _, latents = read_latents(folder, job.settings.has_clip)
        _write_results(job, job.decode(latents))
    return run


def _transfer(job: Job, progress: Progress) -> Run:
    job.write_reference()
    texts, reference = job.texts(), job.encode() if job.settings.has_clip else None
    schedule = job.schedule()
    denoised = _denoise(job, texts, reference, progress, schedule)
    clip = {} if reference is None else {"reference": reference}
    job.run.write_tensors(LATENTS, {"latents": denoised.latents} | clip)
    if denoised.embeddings:
        facts = embedding_facts(job.settings, schedule.timesteps, job.folder.embedding_kind)
        save_embeddings(job.run, denoised.embeddings, facts)
    _write_results(job, job.decode(denoised.latents))
    job.end(losses=denoised.losses, skipped_optimisation_steps=denoised.skipped, steps=denoised.steps)
    return job.run


def _write_results(job: Job, result: video.Clip) -> None:
    job.write("result", result)
    job.write("comparison", video.side_by_side(job.clip, result))
    result, comparison = (video_name(name, job.settings) for name in ("result", "comparison"))
    logger.info("result: %s; side by side with the clip: %s", job.run.folder / result, comparison)


def _denoise(
    job: Job, texts: Texts, reference: Tensor | None, progress: Progress, schedule: Schedule
) -> Denoised:
    settings = job.settings
    if job.clip.is_still and settings.counted_rows == "moving":
        reason = job.clip.few_levels or "the clip shows no motion"
        logger.warning("%s: there is nothing to transfer, so optimisation is skipped", reason)
        settings = replace(settings, guidance=False, reference_noise="clean")

    def on_step(step: Step) -> None:
        progress.step(f"loss {step.losses[-1]:.4f}" if step.losses else "")
        states.put(denoising.state)

    denoising = Denoising(
        settings,
        schedule,
        texts,
        reference,
        on_step,
        chosen=job.chosen,
        shape=job.folder.latent_shape(settings.frames, settings.size),
        saved_embeddings=job.saved_embeddings,
        resume_from=read_state(job.checkpoint),
        stops=(stops := job.folder.expert_stops(schedule)),
    )
    left = settings.steps_made - denoising.steps_done
    if not left:
        return denoising.result
    with (
        StateWriter(job.checkpoint, len(denoising.state.embeddings)) as states,
        job.meter.phase("denoise", left),
    ):
        for expert, stop in enumerate(stops):
            if denoising.steps_done < stop:
                # in the function, so that an expert's weights are freed before the next are loaded
                job.memory.run("denoise", lambda expert=expert: denoising.run(job.runner(expert), expert))
        return denoising.result
