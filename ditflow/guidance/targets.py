"""Reads the clip's features, which are the target of guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.guidance.losses import LOSSES, FlowLoss, clip_flow
from ditflow.guidance.optimise import Guidance, learning_rates, loss_scaler
from ditflow.models.protocols import Capture, Grid, Inputs, Runner
from ditflow.settings import Settings


def check_blocks(settings: Settings, depth: int) -> None:
    """Raises DitflowError if a block does not exist in a model of `depth` blocks."""
    for name, used in (("guidance_blocks", settings.guidance), ("injection_blocks", settings.injection)):
        blocks = getattr(settings, name)
        if used and not blocks:
            raise DitflowError(f"{name} is empty: name at least one block, 0 to {depth - 1}")
        if used and max(blocks) >= depth:
            raise DitflowError(f"{name}: block {max(blocks)} given, this model has blocks 0 to {depth - 1}")


def clip_features(
    runner: Runner,
    capture: Capture,
    latents: Tensor,  # [1, frames, channels, height, width] the clean clip
    source_prompt: Tensor,  # [1, text tokens, text channels]
    embedding: Tensor,
) -> dict[int, Any]:
    """The clip's features, from one forward at timestep 0 with nothing injected."""
    timestep = _timestep_zero(runner, latents)
    return runner.features(Inputs(latents, source_prompt, timestep, embedding), {}, capture)


def clip_flows(
    runner: Runner,
    settings: Settings,
    blocks: Sequence[int],
    latents: Tensor,  # [1, frames, channels, height, width] the clip, with the noise of `timestep`
    source_prompt: Tensor,  # [1, text tokens, text channels]
    timestep: Tensor | None = None,  # [1]; None: 0
) -> dict[int, Tensor]:  # by block, [frames (query), frames (key), height * width, 2] on the host
    """The clip's motion flow in many blocks, from one forward that keeps no block's queries and keys."""
    transformer = runner.transformer
    grid = transformer.grid(latents)
    timestep = _timestep_zero(runner, latents) if timestep is None else timestep
    inputs = Inputs(latents, source_prompt, timestep, transformer.embedding(grid))
    capture = Capture(FlowLoss.reads, tuple(blocks))
    return runner.features(inputs, {}, capture, lambda _, read: clip_flow(read, grid, settings).cpu())


def prepare_guidance(
    runner: Runner, settings: Settings, grid: Grid, latents: Tensor, source_prompt: Tensor, embedding: Tensor
) -> Guidance:
    """Read the clip's motion and make it the target of every guided step; shapes as in `clip_features`."""
    kind = LOSSES[settings.loss]
    capture = Capture(kind.reads, settings.guidance_blocks)
    references = clip_features(runner, capture, latents, source_prompt, embedding)
    return Guidance(
        loss=kind(references, grid, settings),
        capture=capture,
        variable="latents" if settings.optimise == "latent" else "embedding",
        steps=settings.updates,
        learning_rates=learning_rates(*settings.update_rate, settings.guided_steps),
        scaler=loss_scaler(getattr(torch, settings.dtype), latents.device),
        gradient_reuse=settings.gradient_reuse,
    )


def _timestep_zero(runner: Runner, latents: Tensor) -> Tensor:
    return torch.zeros(1, dtype=runner.transformer.timestep_dtype, device=latents.device)
