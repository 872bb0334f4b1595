"""The optimisation inside a guided step: Adam on the latents or the positional embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from ditflow.models.protocols import Capture, Injected, Inputs, Loss, Runner, Variable
from ditflow.profiling import ranges

LOSS_SCALE = 2.0**16
NEVER = 2**31 - 1  # updates before the scale grows
SMALLEST = 2.0**-149  # positive float32


@dataclass
class Guidance:
    """The optimisation in every guided step: match the clip's motion in the captured blocks."""

    loss: Loss
    capture: Capture
    variable: Variable
    steps: int
    learning_rates: list[float]  # one for each guided step
    scaler: GradScaler

    def optimise(
        self, runner: Runner, inputs: Inputs, injected: Injected, index: int
    ) -> tuple[Inputs, Tensor, Tensor]:
        """Optimise the variable in guided step `index`, with a new Adam in each step as in the released code.

        Returns the new inputs, the loss before each update and the sum of each update's gradient, which is
        finite if and only if the gradient is. Both are float32 [steps], on the device.
        """
        variable = getattr(inputs, self.variable).clone()
        adam = torch.optim.Adam([variable], lr=self.learning_rates[index], fused=True)
        one = torch.ones((), device=variable.device)
        losses, gradients = [], []
        for _ in ranges.optimisation_steps(index, self.steps):
            current = replace(inputs, **{self.variable: variable})
            loss, variable.grad = runner.gradient(
                self.loss, self.variable, current, injected, self.capture, self.scaler.scale(one)
            )
            losses.append(loss)
            gradients.append(variable.grad.sum())
            self.scaler.step(adam)
            self.scaler.update()
        optimised = replace(inputs, **{self.variable: variable.detach()})
        return optimised, torch.stack(losses), torch.stack(gradients)

    @property
    def may_overflow(self) -> bool:
        """Whether the loss scale can explain a non-finite gradient, whose update is then skipped."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    @property
    def still(self) -> bool:
        """Whether the clip shows no motion, so that there is nothing to match."""
        return self.loss.still

    def restore(self, skipped: int, velocities: Tensor | None = None) -> None:
        """Set the loss scale that follows from this many skipped updates. `velocities` are for loss x0."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": LOSS_SCALE / 2**skipped})

    @property
    def skipped(self) -> int:
        """How many updates were skipped because their gradient overflowed."""
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
