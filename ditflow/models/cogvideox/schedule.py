"""The sampler: timesteps, noise levels and one denoising step, over diffusers' CogVideoX schedulers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from torch import Tensor

SCHEDULERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}


class Moment(NamedTuple):
    """What a schedule's next step depends on, beside its position."""

    clean_estimate: Tensor | None  # with DPM
    generator: Tensor  # the generator's state


class Schedule:
    """A run through the noise levels, from the first timestep to the last.

    State: the step's position, and with DPM the previous clean estimate. Noise comes from `generator`, on the
    CPU, so that a seed gives the same noise on every device.
    """

    def __init__(self, kind: str, config: dict, steps: int, device: torch.device, generator: torch.Generator):
        self.scheduler = SCHEDULERS[kind].from_config(config, timestep_spacing="trailing")
        self.scheduler.set_timesteps(steps, device=device)
        self.timesteps: list[int] = self.scheduler.timesteps.tolist()
        self.on_device = self.scheduler.timesteps  # [steps], so that a step need not fetch or send one
        self.device, self.generator = device, generator
        self.clean_estimate: Tensor | None = None

    def initial_noise(self, shape: tuple[int, ...]) -> Tensor:
        """The latents a run begins with, float32."""
        noise = torch.randn(shape, generator=self.generator) * self.scheduler.init_noise_sigma
        return noise.to(self.device)

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Clean latents at the noise level of a timestep [1]."""
        return self.scheduler.add_noise(latents, noise, timestep)

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
        """The latents after denoising step `index`, float32."""
        timestep = self.timesteps[index]
        if isinstance(self.scheduler, CogVideoXDDIMScheduler):
            return self.scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        latents, self.clean_estimate = self.scheduler.step(
            prediction,
            self.clean_estimate,
            timestep,
            self.timesteps[index - 1] if index else None,
            latents,
            generator=self.generator,
            return_dict=False,
        )
        return latents

    def moment(self) -> Moment:
        return Moment(self.clean_estimate, self.generator.get_state())

    def back_to(self, moment: Moment) -> None:
        """As it was then, so that a step that failed can be made again."""
        estimate = moment.clean_estimate
        self.clean_estimate = None if estimate is None else estimate.to(self.device)
        self.generator.set_state(moment.generator)


def dynamic_guidance_scale(scale: float, steps: int, timestep: int) -> float:
    """The guidance scale of a timestep where it changes over the steps, as diffusers computes it for 5B.

    The formula mixes a count of steps with a timestep; it is what the weights were used with.
    """
    progress = (steps - timestep) / steps
    return 1 + scale * (1 - math.cos(math.pi * progress**5.0)) / 2
