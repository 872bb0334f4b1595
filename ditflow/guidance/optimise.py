"""The optimisation inside a guided step: Adam on the latents or the positional embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.functional import cosine_similarity

from ditflow.models.protocols import Capture, Injected, Inputs, Loss, Runner, Variable
from ditflow.profiling import ranges

if TYPE_CHECKING:
    from ditflow.guidance.targets import NoisedClip

OnUpdate = Callable[[], None]  # called before each optimisation step; an error ends the run
LOSS_SCALE = 2.0**16
NEVER = 2**31 - 1  # updates before the scale grows
SMALLEST = 2.0**-149  # positive float32


class Optimised(NamedTuple):
    """What the optimisation of a guided step has found. Its tensors are float32, on the device."""

    inputs: Inputs
    losses: Tensor  # [gradients] at each gradient
    gradients: Tensor  # [gradients] the sum of each gradient, finite if and only if the gradient is
    cosine: Tensor | None  # [] of the second gradient with the first; None if there is only one


@dataclass
class Guidance:
    """The optimisation in every guided step: match the clip's motion in the captured blocks."""

    loss: Loss | None  # None before the first guided step of those that read the clip anew
    capture: Capture
    variable: Variable
    steps: int  # updates in a guided step
    learning_rates: list[float]  # one for each guided step
    scaler: GradScaler
    gradient_reuse: int = 1  # updates made with each gradient
    clip: NoisedClip | None = None  # read anew in each guided step

    def optimise(
        self,
        runner: Runner,
        inputs: Inputs,
        injected: Injected,
        index: int,
        on_update: OnUpdate = lambda: None,
    ) -> Optimised:
        """Optimise the variable in guided step `index`, with a new Adam in each as in the released code."""
        if self.clip:
            self.loss = None  # frees the last step's target before the next is read
            self.loss = self.clip.loss(runner, inputs.timestep)
        variable = getattr(inputs, self.variable).clone()
        adam = torch.optim.Adam([variable], lr=self.learning_rates[index], fused=True)
        one = torch.ones((), device=variable.device)
        losses, gradients, cosine = [], [], None
        for update in ranges.optimisation_steps(index, self.steps):
            on_update()
            scale, is_fresh = self.scaler.scale(one), update % self.gradient_reuse == 0
            if is_fresh:
                before, current = variable.grad, replace(inputs, **{self.variable: variable})
                loss, gradient = runner.gradient(
                    self.loss, self.variable, current, injected, self.capture, scale
                )
                gradient = in_layout_of(variable, gradient)
                losses.append(loss)
                gradients.append(gradient.sum())
                if len(losses) == 2:
                    cosine = cosine_similarity(before.flatten(), gradient.flatten(), dim=0)
            # a copy if it is used again, because the update divides it by the scale in place
            variable.grad = gradient if self.gradient_reuse == 1 else gradient.clone()
            self.scaler.step(adam)
            # an overflow of one gradient halves the scale once
            self.scaler.update(None if is_fresh else scale)
        optimised = replace(inputs, **{self.variable: variable.detach()})
        return Optimised(optimised, torch.stack(losses), torch.stack(gradients), cosine)

    @property
    def may_overflow(self) -> bool:
        """Whether the loss scale can explain a non-finite gradient, whose update is then skipped."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    @property
    def still(self) -> bool:
        """Whether the clip shows no motion, so that there is nothing to match."""
        return (self.clip or self.loss).still

    def state(self) -> dict[str, Tensor]:
        """What the next guided step depends on, besides the number of skipped updates: nothing."""
        return {}

    def restore(self, skipped: int, state: Mapping[str, Tensor]) -> None:
        """Set the loss scale that follows from this many skipped updates."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": LOSS_SCALE / 2**skipped})

    @property
    def skipped(self) -> int:
        """How many gradients overflowed, whose updates were skipped."""
        if not self.scaler.is_enabled():
            return 0
        return round(math.log2(LOSS_SCALE / max(self.scaler.get_scale(), SMALLEST)))


def loss_scaler(dtype: torch.dtype, device: torch.device) -> GradScaler:
    """A gradient scaler that keeps float16 from underflowing; disabled for bfloat16 and float32.

    On overflow it halves the scale and skips the update, without waiting for the device. The scale is a power
    of two, so scaling does not round, and it never grows.
    """
    enabled = dtype == torch.float16
    return GradScaler(device.type, init_scale=LOSS_SCALE, growth_interval=NEVER, enabled=enabled)


def learning_rates(high: float, low: float, guided_steps: int) -> list[float]:
    """The published schedule: `linspace(high, low, guided_steps + 1)` without its last value."""
    return np.linspace(high, low, guided_steps + 1)[:-1].tolist()


def is_still(
    latents: Tensor,  # [1, frames, channels, height, width]
) -> bool:
    """Whether all frames of an encoded clip are equal."""
    return bool((latents == latents[:, :1]).all())


def in_layout_of(variable: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the order in memory of its variable, which fused Adam expects and does not check.

    A model that moves an axis of its latents gives a gradient in another order.
    """
    if gradient.stride() == variable.stride():
        return gradient
    return torch.empty_like(variable).copy_(gradient)
