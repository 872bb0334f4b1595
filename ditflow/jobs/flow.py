"""The flow job: a clip's motion flow as tensors and pictures."""

from __future__ import annotations

import numpy as np
from einops import rearrange
from torch import Tensor

from ditflow.guidance.targets import clip_flows
from ditflow.jobs.session import Job
from ditflow.models.protocols import Grid, Texts
from ditflow.pictures.clip_flow import draw_flow
from ditflow.progress import Progress
from ditflow.run_folder.run import Run
from ditflow.settings import Settings
from ditflow.small.truth import true_flow_of


def flow(settings: Settings, progress: Progress | None = None) -> Run:
    """Write a clip's motion flow in each guidance block: tensors, a sheet of pictures, arrows on the frames.

    For a generated clip (`ditflow.small`) the true motion is drawn as well.

    Raises DitflowError (SettingsError for wrong settings) with one line that says what to do.
    """
    with Job.begin(settings, progress or Progress(), needs=("video",), kind="flow") as job:
        job.write_reference()
        texts, reference = job.texts(), job.encode()
        with job.meter.phase("flow"):
            grid, flows = job.memory.run("flow", lambda: _read(job, texts, reference))
        job.run.write_tensors("flow.safetensors", {f"block_{block}": flow for block, flow in flows.items()})
        for block, flow in flows.items():
            _draw(job, f"block_{block}", flow.numpy(), grid)
        if (truth := true_flow_of(job.settings, grid)) is not None:
            _draw(job, "true", truth, grid)
        job.end()
        return job.run


def _read(job: Job, texts: Texts, reference: Tensor) -> tuple[Grid, dict[int, Tensor]]:
    """The grid, and the motion flow of each guidance block."""
    runner, settings = job.runner(), job.settings
    flows = clip_flows(runner, settings, settings.guidance_blocks, reference, texts.source_prompt)
    return runner.transformer.grid(reference), flows


def _draw(job: Job, name: str, flow: np.ndarray, grid: Grid) -> None:
    """Write the pictures of a flow [frames (query), frames (key), height * width, 2]."""
    pairs = rearrange(flow, "q k (h w) c -> q k h w c", h=grid.height)
    sheet, arrows = draw_flow(job.clip, pairs, job.folder.family.latent_spans(job.settings.frames))
    job.run.write_picture(f"flow_{name}.png", sheet)
    job.write(f"arrows_{name}", arrows)
