"""The motion flow of a run's clip and of its result, in the guided blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from einops import rearrange
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import clip_features, flow_targets
from ditflow.jobs.job import Job
from ditflow.jobs.opening import reading_job
from ditflow.models.hub import offline
from ditflow.models.protocols import Capture
from ditflow.run_folder.run import Run


@dataclass(frozen=True)
class OwnFlow:
    """Hard flow of one block, [frames (query), frames (key), height, width, 2] in latent patches, (x, y)."""

    distance: float  # mean squared difference, latent patches²: the loss that guidance lowers
    reference: np.ndarray  # the clip's, or what was chosen instead: any real numbers, NaN where it is free
    result: np.ndarray


def read_own_flow(run: FinishedRun) -> dict[int, OwnFlow]:
    """Read both with the run's own model, by block.

    Downloads nothing: the run may be a stranger's. Raises DitflowError if its model is not on this machine,
    or if its motion was chosen but its folder does not hold it.
    """
    if run.settings.chooses_motion and not run.has_target:
        raise DitflowError(
            f"{run.folder} has no target to compare with: its settings choose a motion, which only a run "
            "that is guided saves"
        )
    # fit this machine's memory: the run may be from another one
    settings = replace(
        run.settings, memory="auto", preset="auto", compile="off", loss="flow", reference="hard"
    )
    reference, result = run.latents()
    with offline(), reading_job(Run(run.folder), settings, result) as job:
        prompt = job.texts().source_prompt
        return job.compute("flow", lambda: _read(job, prompt, reference, result))


def _read(job: Job, prompt: Tensor, reference: Tensor | None, result: Tensor) -> dict[int, OwnFlow]:
    runner, settings = job.runner(), job.settings
    grid = runner.transformer.grid(result)
    embedding = runner.transformer.embedding(grid)
    capture = Capture(FlowLoss.reads, settings.guidance_blocks)

    def features(latents: Tensor) -> dict:
        return clip_features(runner, capture, latents.to(job.folder.device), prompt, embedding)

    found = features(result)
    if reference is None:
        targets = dict.fromkeys(found, job.chosen.target().to(job.folder.device))
    else:
        targets = flow_targets(features(reference), grid, settings, job.chosen)
    loss, hard = FlowLoss(targets, grid, settings), flow_targets(found, grid, settings)

    def pairs(flow: Tensor) -> np.ndarray:
        return rearrange(flow.cpu().numpy(), "q k (h w) c -> q k h w c", h=grid.height)

    return {
        block: OwnFlow(float(loss(block, read)), pairs(targets[block]), pairs(hard[block]))
        for block, read in found.items()
    }
