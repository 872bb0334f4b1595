"""The transfer job, also with a saved embedding, and the resume and decode jobs, which continue one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.jobs.given import NOTHING, Given
from ditflow.jobs.job import Job
from ditflow.jobs.needs import transfer_needs
from ditflow.jobs.opening import begin_job, reopen_job
from ditflow.models.kept import KeptParts
from ditflow.models.protocols import Schedule, Texts
from ditflow.pictures.thumbnails import Thumbnails
from ditflow.planning.plan import step_work
from ditflow.progress import Progress
from ditflow.run_folder.checkpoint import StateWriter, clear_leftovers, read_state
from ditflow.run_folder.embeddings import embedding_facts, save_embeddings
from ditflow.run_folder.run import LATENTS, Run, read_latents, video_name
from ditflow.sampling.denoising import Denoised, Denoising
from ditflow.sampling.loop import Step
from ditflow.settings import Settings, injection_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transferred:
    """A finished transfer."""

    run: Run
    clip: video.Clip  # the new video
    latents: Tensor  # [1, frames, channels, height, width]
    losses: list[list[float]]  # [guided steps][gradients]


def transfer(settings: Settings, progress: Progress | None = None) -> Run:
    """Make a new video with the clip's motion and the prompt's content. Returns its run folder.

    Raises DitflowError (SettingsError for wrong settings) with one line that says what to do.
    """
    return begin_transfer(settings, progress or Progress()).run


def inject(run: str | PathLike, prompt: str, progress: Progress | None = None, **settings: Any) -> Run:
    """Use the embedding that an earlier run has optimised with another prompt. Returns the new run folder.

    `settings` replace the earlier run's. Raises like `transfer`.
    """
    return transfer(injection_settings(run, **settings | {"prompt": prompt}), progress)


def begin_transfer(settings: Settings, progress: Progress, given: Given = NOTHING) -> Transferred:
    """Make a new video, with what the caller has in memory. Raises like `transfer`."""
    with begin_job(settings, progress, needs=transfer_needs(settings), given=given) as job:
        return _transfer(job, progress)


def resume(folder: str | PathLike, progress: Progress | None = None, memory: str | None = None) -> Run:
    """Continue an interrupted transfer. The result is the same as without the interruption.

    Raises DitflowError if its settings or weights have changed, its checkpoint is damaged or it is in use.
    """
    run = Run.open(folder)
    if run.finished:
        logger.info("%s is finished: there is nothing to resume", folder)
        clear_leftovers(run)
        return run
    return continue_transfer(run, progress or Progress(), memory).run


def continue_transfer(
    run: Run,
    progress: Progress,
    memory: str | None = None,
    kept: KeptParts | None = None,
    preset: str = "auto",  # if `memory` is given
) -> Transferred:
    """Continue an unfinished transfer, with parts that the caller has in memory. Raises like `resume`."""
    with reopen_job(run, progress, memory, preset, kept=kept) as job:
        return _transfer(job, progress)


def decode(folder: str | PathLike, progress: Progress | None = None, memory: str | None = None) -> Run:
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
    with reopen_job(run, progress, memory, finished=True) as job:
        for name in ("result", "comparison"):
            path = folder / video_name(name, job.settings)
            if path.exists() and (name == "result" or path.is_dir()):  # a comparison's file is replaced
                raise DitflowError(f"{path} exists: move it away first")
        _, latents = read_latents(folder, job.settings.has_clip)
        _write_results(job, job.decode(latents))
    return run


def _transfer(job: Job, progress: Progress) -> Transferred:
    job.write_reference()
    texts, reference = job.texts(), job.encode() if job.settings.has_clip else None
    schedule = job.schedule()
    denoised = _denoise(job, texts, reference, progress, schedule)
    clip = {} if reference is None else {"reference": reference}
    job.run.write_tensors(LATENTS, {"latents": denoised.latents} | clip)
    if denoised.embeddings:
        facts = embedding_facts(job.settings, schedule.timesteps, job.folder.embedding_kind)
        save_embeddings(job.run, denoised.embeddings, facts)
    result = job.decode(denoised.latents)
    _write_results(job, result)
    job.end(losses=denoised.losses, skipped_optimisation_steps=denoised.skipped, steps=denoised.steps)
    return Transferred(job.run, result, denoised.latents.cpu(), denoised.losses)


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
    thumbnails = None
    if reference is not None:
        spans = job.folder.family.latent_spans(settings.frames)
        thumbnails = Thumbnails(reference, job.clip.frames, spans)

    def on_step(step: Step) -> None:
        states.put(denoising.state)  # before the report, which may end the run
        preview = thumbnails and (lambda: thumbnails.draw(step.estimate()))
        progress.step(step.losses[-1] if step.losses else None, preview)

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
        on_update=progress.substep,
    )
    done = denoising.steps_done
    if done == settings.steps_made:
        return denoising.result
    work = step_work(job.memory.plan, settings)[done:]
    with (
        StateWriter(job.checkpoint, len(denoising.state.embeddings)) as states,
        job.meter.phase("denoise", len(work), work),
    ):
        for expert, stop in enumerate(stops):
            if denoising.steps_done < stop:
                # in the function, so that an expert's weights are freed before the next are loaded
                job.compute("denoise", lambda expert=expert: denoising.run(job.runner(expert), expert))
        return denoising.result
