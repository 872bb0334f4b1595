"""Reads the clip's features, which are the target of guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.guidance.losses import LOSSES
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
    timestep = torch.zeros(1, dtype=runner.transformer.timestep_dtype, device=latents.device)
    return runner.features(Inputs(latents, source_prompt, timestep, embedding), {}, capture)


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
        steps=settings.optimisation_steps,
        learning_rates=learning_rates(*settings.learning_rate, settings.guided_steps),
        scaler=loss_scaler(getattr(torch, settings.dtype), latents.device),
    )
