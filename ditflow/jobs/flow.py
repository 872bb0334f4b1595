"""The flow job: the motion that guidance would ask for, as tensors and pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from einops import rearrange
from torch import Tensor

from ditflow.guidance.targets import clip_flows
from ditflow.jobs.checks import with_absolute_paths
from ditflow.jobs.job import Job
from ditflow.jobs.needs import check_given
from ditflow.jobs.opening import begin_job
from ditflow.models.families import family_of
from ditflow.models.protocols import Grid, Texts
from ditflow.motion.choose import choose_motion
from ditflow.motion.motion_file import read_drawing
from ditflow.motion.source import source_clip
from ditflow.pictures.clip_flow import draw_flow
from ditflow.planning.fake import FakeModel
from ditflow.progress import Progress
from ditflow.run_folder.run import SETTINGS, Run, check_output_name, create_run, settings_text, video_name
from ditflow.settings import Settings
from ditflow.small.truth import true_flow_of
from ditflow.video import Clip, write_clip

logger = logging.getLogger(__name__)

FILE = "flow.safetensors"


def flow(settings: Settings, progress: Progress | None = None) -> Run:
    """Write a clip's motion flow in each guidance block: tensors, a sheet of pictures, arrows on the frames.

    If the settings choose the motion, it is what guidance would ask for, and cells of which nothing is asked
    are NaN. A drawn motion without a clip needs no model. For a generated clip (`ditflow.small`) the true
    motion is drawn as well.

    Raises DitflowError (SettingsError for wrong settings) with one line that says what to do.
    """
    if not settings.has_clip:
        return _drawn_flow(settings)
    with begin_job(settings, progress or Progress(), needs=("video",), kind="flow") as job:
        job.write_reference()
        texts, reference = job.texts(), job.encode()
        with job.meter.phase("flow"):
            grid, flows = job.compute("flow", lambda: _read(job, texts, reference))
        if job.chosen:
            flows = {block: job.chosen.target(seen) for block, seen in flows.items()}
        job.run.write_tensors(FILE, {f"block_{block}": flow for block, flow in flows.items()})
        for block, found in flows.items():
            _draw(job.run, job.settings, job.clip, f"block_{block}", found.numpy(), grid)
        if (truth := true_flow_of(job.settings, grid)) is not None:
            _draw(job.run, job.settings, job.clip, "true", truth, grid)
        job.end()
        return job.run


def _read(job: Job, texts: Texts, reference: Tensor) -> tuple[Grid, dict[int, Tensor]]:
    """The grid, and the motion flow of each guidance block."""
    runner, settings = job.runner(), job.settings
    flows = clip_flows(runner, settings, settings.guidance_blocks, reference, texts.source_prompt)
    return runner.transformer.grid(reference), flows


def _drawn_flow(settings: Settings) -> Run:
    """The same for a drawn motion without a clip: what it asks for, and a preview of it."""
    check_given(settings, "motion")
    check_output_name(settings.output)
    settings = with_absolute_paths(settings)
    drawing, family = read_drawing(Path(settings.motion)), family_of(settings.model, download=True)
    clip, grid = source_clip(settings, drawing, family), FakeModel(settings).grid()
    spans = family.latent_spans(settings.frames)
    target = choose_motion(settings, clip, drawing, grid, spans).target()
    run = create_run(settings, "flow")
    logger.info("run folder: %s", run.folder)
    run.write_text(SETTINGS, settings_text(settings))
    _write_video(run, settings, "reference", clip)
    run.write_tensors(FILE, {"drawn": target})
    _draw(run, settings, clip, "drawn", target.numpy(), grid)
    return run


def _draw(run: Run, settings: Settings, clip: Clip, name: str, flow: np.ndarray, grid: Grid) -> None:
    """Write the pictures of a flow [frames (query), frames (key), height * width, 2]."""
    pairs = rearrange(flow, "q k (h w) c -> q k h w c", h=grid.height)
    spans = family_of(settings.model).latent_spans(settings.frames)
    sheet, arrows = draw_flow(clip, pairs, spans)
    run.write_picture(f"flow_{name}.png", sheet)
    _write_video(run, settings, f"arrows_{name}", arrows)


def _write_video(run: Run, settings: Settings, name: str, clip: Clip) -> None:
    with run.writing(video_name(name, settings)) as path:
        write_clip(clip, path, metadata=settings.to_yaml())
