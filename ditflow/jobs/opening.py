"""Opening a job: a new run, an unfinished or finished one again, or a finished one to read its motion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ditflow.errors import TemporaryError, interruption
from ditflow.files import clear_unfinished
from ditflow.jobs.checks import check_run, make_schedule, warn_without_effect, with_absolute_paths
from ditflow.jobs.device import choose_device, computing
from ditflow.jobs.given import NOTHING, Given
from ditflow.jobs.job import Job
from ditflow.jobs.kept import checkpoint_of, chosen_of, shapes_of
from ditflow.jobs.needs import check_given
from ditflow.memory.meter import Meter
from ditflow.models.families import family_of
from ditflow.models.kept import KeptParts
from ditflow.models.loading import ModelFolder
from ditflow.motion.choose import choose_motion
from ditflow.motion.motion_file import read_drawing
from ditflow.motion.source import source_clip
from ditflow.planning.fallback import MemoryFallback, reading_only
from ditflow.progress import Progress
from ditflow.run_folder.checkpoint import load_clip, save_clip
from ditflow.run_folder.chosen import save_chosen
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import (
    SETTINGS,
    Run,
    check_latents_shape,
    check_output_name,
    create_run,
    settings_text,
)
from ditflow.settings import Settings

logger = logging.getLogger(__name__)

Check = Callable[[Settings, ModelFolder], None]  # raises DitflowError


@contextmanager
def begin_job(
    settings: Settings,
    progress: Progress,
    needs: tuple[str, ...],
    kind: str = "",
    check: Check = lambda settings, folder: None,  # what else the job wants of the model
    given: Given = NOTHING,
) -> Iterator[Job]:
    """Start a new job. The run folder is created only after everything has been read and checked."""
    check_given(settings, *needs)
    check_output_name(settings.output)
    settings = with_absolute_paths(settings)
    settings_text(settings)  # refuses settings that could not be read back
    with computing(settings), _begin(settings, progress, kind, check, given) as job:
        yield job


@contextmanager
def _begin(settings: Settings, progress: Progress, kind: str, check: Check, given: Given) -> Iterator[Job]:
    device = choose_device(settings)
    family = family_of(settings.model, download=True)
    drawing = read_drawing(Path(settings.motion)) if settings.motion else None
    clip = source_clip(settings, drawing, family, given.clip)
    needs_gradient = settings.needs_gradient and kind != "flow"
    settings, folder, saved = check_run(settings, device, needs_gradient, given.kept)
    check(settings, folder)
    if not kind:
        warn_without_effect(settings)
    chosen = None
    if settings.chooses_motion and (settings.optimises or kind == "flow"):
        spans = folder.family.latent_spans(settings.frames)
        grid = folder.grid(settings.frames, settings.size)
        chosen = choose_motion(settings, clip, drawing, grid, spans, given.clip)
    memory = _plan_memory(settings, folder, reads_only=kind == "flow")
    run = create_run(settings, kind, given.exact_folder)
    with locked(run.folder):
        checkpoint = None if kind else checkpoint_of(run, memory.resolved, folder, clip, chosen)
        if checkpoint:
            save_clip(checkpoint, clip, torch.get_num_threads())
            if chosen:
                save_chosen(run, chosen)
        meter = Meter(device, progress)
        job = Job(memory, folder, clip, run, meter, checkpoint, saved, chosen=chosen)
        with _working(job, f"run folder: {run.folder}"):
            yield job


@contextmanager
def reopen_job(
    run: Run,
    progress: Progress,
    memory: str | None = None,  # replaces the setting that the run had, and then `preset` its preset
    preset: str = "auto",
    finished: bool = False,  # a finished run has results and no checkpoint
    kept: KeptParts | None = None,
) -> Iterator[Job]:
    """Reopen a transfer's folder. Raises DitflowError if it is damaged, has changed or is in use."""
    with locked(run.folder):
        clear_unfinished(run.folder)
        settings = run.settings()
        if memory:
            settings = replace(settings, memory=memory, preset=preset, decode_tile="auto")
        with computing(settings):
            device = choose_device(settings)
            settings, folder, saved = check_run(settings, device, settings.needs_gradient, kept)
            checkpoint = threads = None
            chosen = chosen_of(run, settings, folder)
            if finished:
                clip = run.clip("reference", settings)
            else:
                clip, threads = load_clip(run)
                checkpoint = checkpoint_of(run, settings, folder, clip, chosen)
                shapes = shapes_of(settings, folder)
                if state := checkpoint.check(shapes):  # every file, before any work
                    schedule = make_schedule(settings, folder, torch.Generator())
                    shapes.check_state(checkpoint.path("step"), state.index, state.schedule, schedule)
                    shapes.check_reuse(checkpoint.path("step"), state.reuse)
            fallback, meter = _plan_memory(settings, folder), Meter(device, progress)
            job = Job(fallback, folder, clip, run, meter, checkpoint, saved, resumed=True, chosen=chosen)
            with (
                computing(settings, threads if device.type == "cpu" else None),
                _working(job, f"continuing {run.folder}"),
            ):
                yield job


@contextmanager
def reading_job(run: Run, settings: Settings, latents: Tensor) -> Iterator[Job]:
    """A job that reads the motion of a finished run's latents with its model, and writes nothing."""
    with computing(settings):
        device = choose_device(settings)
        settings, folder, _ = check_run(replace(settings, saved_embedding=""), device, needs_gradient=False)
        shape = folder.latent_shape(settings.frames, settings.size)
        check_latents_shape(run.folder, latents, shape)  # before planning for wrong settings
        memory = _plan_memory(settings, folder, reads_only=True)
        clip, meter = run.clip("reference", settings), Meter(device, Progress())
        job = Job(memory, folder, clip, run, meter, chosen=chosen_of(run, settings, folder))
        with memory:
            yield job


@contextmanager
def _working(job: Job, headline: str) -> Iterator[None]:
    """Apply the memory limit, and add to errors how to resume."""
    if not job.settings.has_clip:
        logger.info("no clip: no motion is read, and nothing is injected")
    with job.memory, _resume_hint(job.run) if job.checkpoint else nullcontext():
        logger.info("%s, %s", headline, job.memory.summary)
        job.memory.on_change = job.write_settings
        job.meter.progress.begin(job.run.folder)
        job.write_settings()  # from now on the run can be reopened
        yield


def _plan_memory(settings: Settings, folder: ModelFolder, reads_only: bool = False) -> MemoryFallback:
    """The memory plan of a job. Raises DitflowError if no preset fits."""
    planned = replace(settings, model=str(folder.path))  # the model by its folder, whatever name was given
    if reads_only:
        planned = reading_only(settings, folder.path)
    return MemoryFallback(settings, folder.device, planned)


@contextmanager
def _resume_hint(run: Run) -> Iterator[None]:
    """Add to interrupts, and to errors that need not recur, how to resume."""
    try:
        yield
    except BaseException as error:
        may_help = isinstance(error, TemporaryError) or interruption(error)
        if may_help and (run.folder / SETTINGS).is_file():  # else there is nothing to resume
            error.add_note(f"`ditflow resume {run.quoted}` continues from there")
        raise
