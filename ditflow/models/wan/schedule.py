"""Wan's timesteps, noise and denoising step, computed by diffusers' schedulers with flow-matching noise.

latents = (1 - level) * clean + level * noise, and the model predicts the velocity, noise - clean.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from einops import rearrange
from torch import Tensor

from ditflow.models.protocols import SchedulerState

SCHEDULERS = ("unipc", "euler")  # of second order with a corrector; of first order
LARGE, LARGE_SHIFT = 900_000, 5.0  # pixels: 1280x720, also cut to 1280x704 for tokens of 32 pixels
SOLVER = ("solver_order", "solver_type", "predict_x0", "lower_order_final", "disable_corrector")


class WanSchedule:
    """Implements `Schedule`.

    The state is the generator and, for UniPC, what it keeps of earlier steps: the last clean estimates, the
    sample before its last step, and the orders of its last and next step.
    """

    def __init__(
        self,
        kind: str,
        config: Mapping[str, Any],
        steps: int,
        size: tuple[int, int],  # (width, height) in pixels
        device: torch.device,
        generator: torch.Generator,
        skipped: int = 0,  # steps left out, from the first
    ):
        self.scheduler = _scheduler(kind, config, size)
        self.scheduler.set_timesteps(steps, device=device)
        self.skipped = skipped
        self.on_device = self.scheduler.timesteps[skipped:].float()
        self.timesteps: list[float] = self.on_device.tolist()
        self.levels = self.scheduler.sigmas[skipped:-1].to(device)  # UniPC rounds timesteps, but not levels
        self.device, self.generator = device, generator

    def initial_noise(self, shape: tuple[int, ...]) -> Tensor:
        """Drawn in diffusers' order of axes, so that a seed gives the noise that it gives there."""
        batch, frames, channels, height, width = shape
        noise = torch.randn(batch, channels, frames, height, width, generator=self.generator)
        return rearrange(noise, "b c f h w -> b f c h w").contiguous().to(self.device)

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        level = self._level(timestep)
        return (1 - level) * latents + level * noise

    def estimate_clean(self, prediction: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        return latents - self._level(timestep) * prediction

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
        scheduler, index = self.scheduler, self.skipped + index
        scheduler._step_index = index  # otherwise it counts, and a resumed run would count from 0
        return scheduler.step(prediction, scheduler.timesteps[index], latents, return_dict=False)[0]

    def dynamic_scale(self, scale: float, index: int) -> float:
        return scale  # `has_dynamic_scale` is False

    def state(self) -> SchedulerState:
        state, scheduler = {"generator": self.generator.get_state()}, self.scheduler
        if isinstance(scheduler, UniPCMultistepScheduler) and scheduler.last_sample is not None:
            state |= {
                f"clean_estimate_{age}": estimate
                for age, estimate in enumerate(reversed(scheduler.model_outputs))
                if estimate is not None
            }
            orders = torch.tensor([scheduler.this_order, scheduler.lower_order_nums])
            state |= {"last_sample": scheduler.last_sample, "orders": orders}
        return state

    def restore(self, state: SchedulerState) -> None:
        self.generator.set_state(state["generator"])
        if not isinstance(self.scheduler, UniPCMultistepScheduler):
            return
        scheduler, orders = self.scheduler, state.get("orders", torch.zeros(2, dtype=torch.int64)).tolist()
        scheduler.this_order, scheduler.lower_order_nums = orders
        here = {name: tensor.to(self.device) for name, tensor in state.items() if name not in OTHERS}
        ages = reversed(range(len(scheduler.model_outputs)))
        scheduler.model_outputs = [here.get(f"clean_estimate_{age}") for age in ages]
        scheduler.last_sample = here.get("last_sample")

    def _level(self, timestep: Tensor) -> Tensor:
        """The noise level [1] of a timestep [1], of this schedule or another."""
        same = self.on_device == timestep
        exact = self.levels[same.int().argmax()]
        return torch.where(same.any(), exact, timestep / self.scheduler.config.num_train_timesteps)


OTHERS = ("generator", "orders")  # parts of the state that stay on the host


def _scheduler(
    kind: str, config: Mapping[str, Any], size: tuple[int, int]
) -> UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler:
    """A scheduler of this kind with the shift of the model's own, whose kind may be the other.

    Videos of 720p and more have at least the shift that is published for them.
    """
    steps = config.get("num_train_timesteps", 1000)
    shift = config.get("flow_shift", config.get("shift", 1.0))
    if prod(size) >= LARGE:
        shift = max(shift, LARGE_SHIFT)
    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=shift)
    solver = {key: config[key] for key in SOLVER if key in config}
    return UniPCMultistepScheduler(
        num_train_timesteps=steps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        **solver,
    )
