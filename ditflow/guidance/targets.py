"""Makes the target of guidance: the clip's features, or the motion chosen instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.guidance.losses import LOSSES, FlowLoss
from ditflow.guidance.optimise import Guidance, is_still, learning_rates, loss_scaler
from ditflow.models.protocols import Capture, Grid, Inputs, Loss, QueryKey, Runner, Schedule
from ditflow.motion.chosen import ChosenMotion
from ditflow.settings import Settings
from ditflow_kernels import motion_flow


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
    latents: Tensor,  # [1, frames, channels, height, width] the clip, with the noise of `timestep`
    source_prompt: Tensor,  # [1, text tokens, text channels]
    embedding: Tensor,
    timestep: Tensor | None = None,  # [1]; None: 0
) -> dict[int, Any]:
    """The clip's features, from one forward with nothing injected."""
    timestep = _timestep_zero(runner, latents) if timestep is None else timestep
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


def clip_flow(read: QueryKey, grid: Grid, settings: Settings) -> Tensor:
    """A clip's motion flow in one block [frames (query), frames (key), height * width, 2]."""
    return motion_flow(*read, grid, settings.temperature, hard=settings.reference == "hard")


def flow_targets(
    features: Mapping[int, QueryKey],  # of the clip, by block
    grid: Grid,
    settings: Settings,
    chosen: ChosenMotion | None = None,
) -> dict[int, Tensor]:
    """What `FlowLoss` compares with: the clip's motion flow by block, or what is chosen instead.

    It is chosen on the host, which takes no memory of the device.
    """
    flows = {block: clip_flow(read, grid, settings) for block, read in features.items()}
    if chosen is None:
        return flows
    return {block: chosen.target(flow.cpu()).to(flow.device) for block, flow in flows.items()}


@dataclass(frozen=True)
class NoisedClip:
    """The clip as a target that is read at the noise level of each guided step, after FastVMT."""

    settings: Settings
    schedule: Schedule
    reference: Tensor  # [1, frames, channels, height, width], the encoded clip
    noise: Tensor  # the run's initial noise, of the same shape
    source_prompt: Tensor  # [1, text tokens, text channels]
    embedding: Tensor  # the native embedding, never an optimised one
    chosen: ChosenMotion | None = None

    def loss(self, runner: Runner, timestep: Tensor) -> Loss:
        """The loss at a timestep [1], from one forward of the clip with its noise and nothing injected."""
        grid = runner.transformer.grid(self.reference)
        noised = self.schedule.add_noise(self.reference, self.noise, timestep)
        given = noised, self.source_prompt, self.embedding
        return _read_loss(runner, self.settings, grid, *given, self.chosen, timestep)

    @property
    def still(self) -> bool:
        """Whether the clip shows no motion, so that there is nothing to match."""
        return is_still(self.reference)


def prepare_guidance(
    runner: Runner,
    settings: Settings,
    grid: Grid,
    latents: Tensor,
    source_prompt: Tensor,
    embedding: Tensor,
    chosen: ChosenMotion | None = None,
) -> Guidance:
    """Read the clip's motion and make it the target of every guided step; shapes as in `clip_features`."""
    loss = _read_loss(runner, settings, grid, latents, source_prompt, embedding, chosen)
    return _guidance(settings, loss, None, latents.device)


def prepare_drawn_guidance(settings: Settings, chosen: ChosenMotion, device: torch.device) -> Guidance:
    """Make a drawn motion, without a clip, the target of every guided step."""
    target = chosen.target().to(device)
    loss = FlowLoss(dict.fromkeys(settings.guidance_blocks, target), chosen.grid, settings)
    return _guidance(settings, loss, None, device)


def prepare_noised_guidance(clip: NoisedClip) -> Guidance:
    """Make the clip's motion at the noise level of each guided step its target. Nothing is read here."""
    return _guidance(clip.settings, None, clip, clip.reference.device)


def _read_loss(
    runner: Runner,
    settings: Settings,
    grid: Grid,
    latents: Tensor,
    source_prompt: Tensor,
    embedding: Tensor,
    chosen: ChosenMotion | None,
    timestep: Tensor | None = None,
) -> Loss:
    """The loss whose target is the clip's motion, or what is chosen of it; shapes as in `clip_features`."""
    kind = LOSSES[settings.loss]
    capture = Capture(kind.reads, settings.guidance_blocks)
    found = clip_features(runner, capture, latents, source_prompt, embedding, timestep)
    if kind is FlowLoss:
        found = flow_targets(found, grid, settings, chosen)
    return kind(found, grid, settings)


def _guidance(
    settings: Settings, loss: Loss | None, clip: NoisedClip | None, device: torch.device
) -> Guidance:
    return Guidance(
        loss=loss,
        capture=Capture(LOSSES[settings.loss].reads, settings.guidance_blocks),
        variable="latents" if settings.optimise == "latent" else "embedding",
        steps=settings.updates,
        learning_rates=learning_rates(*settings.update_rate, settings.guided_steps),
        scaler=loss_scaler(getattr(torch, settings.dtype), device),
        gradient_reuse=settings.gradient_reuse,
        clip=clip,
    )


def _timestep_zero(runner: Runner, latents: Tensor) -> Tensor:
    return torch.zeros(1, dtype=runner.transformer.timestep_dtype, device=latents.device)
