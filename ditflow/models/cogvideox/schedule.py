"""CogVideoX's timesteps, noise and denoising step, computed by diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from torch import Tensor

from ditflow.models.protocols import SchedulerState

SCHEDULERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}


class CogVideoXSchedule:
    """Implements `Schedule`. Its state is the generator and, for DPM, the previous step's clean estimate."""

    def __init__(
        self,
        kind: str,
        config: Mapping[str, Any],
        steps: int,
        device: torch.device,
        generator: torch.Generator,
        skipped: int = 0,  # steps left out, from the first
    ):
        self.scheduler = SCHEDULERS[kind].from_config(config, timestep_spacing="trailing")
        self.scheduler.set_timesteps(steps, device=device)
        self.on_device = self.scheduler.timesteps[skipped:]  # int64
        self.timesteps: list[int] = self.on_device.tolist()
        self.device, self.generator = device, generator
        self.clean_estimate: Tensor | None = None

    def initial_noise(self, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=self.generator) * self.scheduler.init_noise_sigma
        return noise.to(self.device)

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return self.scheduler.add_noise(latents, noise, timestep)

    def estimate_clean(self, prediction: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        share = self.scheduler.alphas_cumprod.to(self.device)[timestep]  # of the signal in the variance
        signal, noise = share.sqrt().to(latents), (1 - share).sqrt().to(latents)
        match self.scheduler.config.prediction_type:
            case "v_prediction":
                return signal * latents - noise * prediction
            case "epsilon":
                return (latents - noise * prediction) / signal
            case _:  # "sample"
                return prediction

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
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

    def dynamic_scale(self, scale: float, index: int) -> float:
        return dynamic_guidance_scale(scale, len(self.timesteps), self.timesteps[index])

    def state(self) -> SchedulerState:
        history = {} if self.clean_estimate is None else {"clean_estimate": self.clean_estimate}
        return {"generator": self.generator.get_state(), **history}

    def restore(self, state: SchedulerState) -> None:
        self.generator.set_state(state["generator"])
        estimate = state.get("clean_estimate")
        self.clean_estimate = None if estimate is None else estimate.to(self.device)


def dynamic_guidance_scale(scale: float, steps: int, timestep: int) -> float:
    """The guidance scale at a timestep, as diffusers computes it for 5B.

    The formula subtracts a timestep from a step count. It is kept: the published results used it.
    """
    progress = (steps - timestep) / steps
    return 1 + scale * (1 - math.cos(math.pi * progress**5.0)) / 2
