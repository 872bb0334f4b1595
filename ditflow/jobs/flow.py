"""The flow job: a clip's motion flow as tensors and pictures."""

from __future__ import annotations

import numpy as np
from einops import rearrange
from torch import Tensor

from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import clip_features
from ditflow.jobs.session import Job
from ditflow.models.protocols import Capture, Grid, Texts
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
            read = job.memory.run("flow", lambda: _read_flow(job, texts, reference))
        tensors = {f"block_{block}": found for block, found in read.references.items()}
        job.run.write_tensors("flow.safetensors", tensors)
        for block, found in read.references.items():
            _draw(job, f"block_{block}", found.cpu().numpy(), read.grid)
        if (truth := true_flow_of(job.settings, read.grid)) is not None:
            _draw(job, "true", truth, read.grid)
        job.end()
        return job.run


def _draw(job: Job, name: str, flow: np.ndarray, grid: Grid) -> None:
    """Write the pictures of a flow [frames (query), frames (key), height * width, 2]."""
    pairs = rearrange(flow, "q k (h w) c -> q k h w c", h=grid.height)
    sheet, arrows = draw_flow(job.clip, pairs, job.folder.family.latent_spans(job.settings.frames))
    job.run.write_picture(f"flow_{name}.png", sheet)
    job.write(f"arrows_{name}", arrows)


def _read_flow(job: Job, texts: Texts, reference: Tensor) -> FlowLoss:
    """The flow loss of the clip; its `references` are the flow."""
    runner = job.runner()
    grid = runner.transformer.grid(reference)
    capture = Capture(FlowLoss.reads, job.settings.guidance_blocks)
    embedding = runner.transformer.embedding(grid)
    features = clip_features(runner, capture, reference, texts.source_prompt, embedding)
    return FlowLoss(features, grid, job.settings)
