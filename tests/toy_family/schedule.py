"""The toy's flow-matching sampler: noise level `timestep / 1000`, the prediction is the velocity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ditflow.models.protocols import SchedulerState

SCHEDULERS = ("adams", "euler")  # of second order, with the velocity before; of first order


class ToySchedule:
    """Implements `ditflow.models.protocols.Schedule`.

    latents = (1 - level) * clean + level * noise, velocity = noise - clean. In each step but the last,
    a share of the noise is drawn anew.
    """

    def __init__(
        self,
        kind: str,
        config: Mapping[str, Any],
        steps: int,
        device: torch.device,
        generator: torch.Generator,
        skipped: int = 0,  # steps left out, from the first
    ):
        self.kind, self.renewed, self.device, self.generator = kind, config["renewed"], device, generator
        even = torch.linspace(1, 0, steps + 1)
        levels = (config["shift"] * even / (1 + (config["shift"] - 1) * even))[skipped:]
        self.levels: list[float] = levels.tolist()
        self.on_device = (1000 * levels[:-1]).to(device)
        self.timesteps: list[float] = (1000 * levels[:-1]).tolist()
        self.velocity: Tensor | None = None  # of the step before

    def initial_noise(self, shape: tuple[int, ...]) -> Tensor:
        return self._noise(shape)

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        level = timestep / 1000
        return (1 - level) * latents + level * noise

    def estimate_clean(self, prediction: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        return latents - timestep / 1000 * prediction

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
        level, following = self.levels[index : index + 2]
        velocity = prediction
        if self.kind == "adams" and self.velocity is not None:
            ratio = (following - level) / (level - self.levels[index - 1])
            velocity = prediction + ratio / 2 * (prediction - self.velocity)
        self.velocity = prediction
        clean, noise = latents - level * velocity, latents + (1 - level) * velocity
        if following:
            noise = math.sqrt(1 - self.renewed) * noise + math.sqrt(self.renewed) * self._noise(noise.shape)
        return (1 - following) * clean + following * noise

    def dynamic_scale(self, scale: float, index: int) -> float:
        return scale  # `has_dynamic_scale` is False

    def state(self) -> SchedulerState:
        history = {} if self.velocity is None else {"velocity": self.velocity}
        return {"generator": self.generator.get_state(), **history}

    def restore(self, state: SchedulerState) -> None:
        self.generator.set_state(state["generator"])
        velocity = state.get("velocity")
        self.velocity = None if velocity is None else velocity.to(self.device)

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)
