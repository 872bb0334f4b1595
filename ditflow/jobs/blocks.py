"""Compares the motion that each block sees with the clip's optical flow, and names the block to guide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ditflow.errors import SettingsError
from ditflow.guidance.targets import clip_flows
from ditflow.jobs.block_comparison import MEASURED, TRUE, Comparison, compare
from ditflow.jobs.checks import make_schedule
from ditflow.jobs.job import Job
from ditflow.jobs.opening import begin_job
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Grid, Texts
from ditflow.optical_flow.dense import opencv
from ditflow.optical_flow.tokens import token_flow
from ditflow.pictures.block_chart import block_chart
from ditflow.progress import Progress
from ditflow.run_folder.run import Run
from ditflow.settings import Settings
from ditflow.small.truth import true_flow_of


def compare_blocks(
    settings: Settings,
    blocks: Sequence[int] | None = None,  # None: all
    timesteps: Sequence[int] = (0,),  # 0: the clean clip, as guidance reads it
    progress: Progress | None = None,
) -> tuple[Run, Comparison]:
    """Read the clip's motion in many blocks, one forward a noise level, and say which block sees it best.

    Writes the clip as the model sees it, `blocks.json` and `blocks.png`.

    Raises DitflowError (SettingsError for wrong settings) with one line that says what to do.
    """
    opencv()  # before any work
    if settings.chooses_motion:
        raise SettingsError(
            f"{settings.chosen_by[0]}: blocks are compared on the whole motion of the clip; leave it out"
        )
    # only the clip is read: blocks of guidance and injection need not exist, and every noise level counts
    off = {"guidance": False, "reference_noise": "clean", "injection": False, "initial_latents": "noise"}
    settings = replace(settings, **off)
    timesteps = sorted(set(timesteps))

    def check(settings: Settings, folder: ModelFolder) -> None:
        _check_blocks(blocks, folder.depth)
        schedule = make_schedule(settings, folder, torch.Generator())
        _check_timesteps(timesteps, max(schedule.timesteps))

    begin = begin_job(settings, progress or Progress(), needs=("video",), kind="flow", check=check)
    with begin as job:
        job.write_reference()
        texts, latents = job.texts(), job.encode()
        asked = range(job.folder.depth) if blocks is None else sorted(set(blocks))
        with job.meter.phase("flow"):
            grid, flows = job.compute("flow", lambda: _read(job, texts, latents, asked, timesteps))
        with job.meter.phase("optical flow"):
            spans = job.folder.family.latent_spans(job.settings.frames)
            references = {MEASURED: token_flow(job.clip.frames, grid, spans)}
        if (truth := true_flow_of(job.settings, grid)) is not None:
            references[TRUE] = truth
        comparison = compare(flows, references, timesteps)
        job.run.write_json("blocks.json", comparison.as_mapping())
        job.run.write_picture("blocks.png", _draw(comparison))
        job.end()
        return job.run, comparison


def _read(
    job: Job, texts: Texts, latents: Tensor, blocks: Sequence[int], timesteps: Sequence[int]
) -> tuple[Grid, list[dict[int, np.ndarray]]]:
    """The motion flow of each block, at each noise level."""
    runner, schedule = job.runner(), job.schedule()
    transformer, noise = runner.transformer, schedule.initial_noise(tuple(latents.shape))
    flows = []
    for timestep in timesteps:
        at = torch.full((1,), timestep, dtype=transformer.timestep_dtype, device=latents.device)
        noised = schedule.add_noise(latents, noise, at) if timestep else latents
        found = clip_flows(runner, job.settings, blocks, noised, texts.source_prompt, at)
        flows.append({block: flow.numpy() for block, flow in found.items()})
    return transformer.grid(latents), flows


def _draw(comparison: Comparison) -> np.ndarray:
    panels = {
        f"score against the {name}": {
            f"t = {timestep}": [scores[level].score for scores in found.blocks.values()]
            for level, timestep in enumerate(comparison.timesteps)
        }
        for name, found in comparison.references.items()
    }
    blocks = list(comparison.references[MEASURED].blocks)
    return block_chart(panels, blocks, comparison.choice.block)


def _check_blocks(blocks: Sequence[int] | None, depth: int) -> None:
    if blocks is None:
        return
    if wrong := [block for block in blocks if not 0 <= block < depth]:
        raise SettingsError(f"blocks: block {wrong[0]} given, this model has blocks 0 to {depth - 1}, or all")


def _check_timesteps(timesteps: Sequence[int], last: float) -> None:
    if wrong := [timestep for timestep in timesteps if not 0 <= timestep <= last]:
        raise SettingsError(
            f"timestep: {wrong[0]} given, this schedule has timesteps 0 (the clean clip) to {last:g}"
        )
