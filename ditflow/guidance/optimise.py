"""The optimisation inside a guided step: Adam on the latents or the positional embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ditflow.backbone.runner import Injected, Inputs, Loss, Runner, Until, Variable


@dataclass
class LossScale:
    """Keeps float16 gradients from underflowing; halved when they overflow.

    The scale is a power of two, so that scaling alone changes no digit. Bfloat16 and float32 need none.
    """

    value: float = 1.0
    can_overflow: bool = False
    skipped: int = 0

    @classmethod
    def suiting(cls, dtype: torch.dtype) -> LossScale:
        return cls(2.0**16, can_overflow=True) if dtype == torch.float16 else cls()

    def unscaled(self, gradient: Tensor) -> Tensor | None:
        """The true gradient, or None where it overflowed: that step is to be left out."""
        if not self.can_overflow:
            return gradient
        if not gradient.isfinite().all():
            self.value, self.skipped = max(1.0, self.value / 2), self.skipped + 1
            return None
        return gradient / self.value


@dataclass
class Guidance:
    """What every guided step does: match the clip's motion in `until.blocks`."""

    loss: Loss
    until: Until
    variable: Variable
    steps: int
    learning_rates: list[float]  # one a guided step
    scale: LossScale

    def optimise(
        self, runner: Runner, inputs: Inputs, injected: Injected, index: int
    ) -> tuple[Inputs, Tensor]:
        """The inputs of guided step `index` with the variable optimised, and the loss before each update.

        A new Adam each guided step, as in the released code. Losses are float32 [steps], on the device.
        """
        variable = getattr(inputs, self.variable).clone()
        adam = torch.optim.Adam([variable], lr=self.learning_rates[index])
        losses = []
        for _ in range(self.steps):
            current = replace(inputs, **{self.variable: variable})
            loss, gradient = runner.gradient(
                self.loss, self.variable, current, injected, self.until, self.scale.value
            )
            losses.append(loss)
            variable.grad = self.scale.unscaled(gradient)
            if variable.grad is not None:
                adam.step()
        return replace(inputs, **{self.variable: variable.detach()}), torch.stack(losses)


def learning_rates(high: float, low: float, guided_steps: int) -> list[float]:
    """`linspace(high, low, guided_steps + 1)` without its last value: the published schedule."""
    return np.linspace(high, low, guided_steps + 1)[:-1].tolist()
