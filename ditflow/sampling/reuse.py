"""Less work in the steps after the guided ones: passes of the model that are left out or reused.

Two rules, which work together:

- The negative prompt's pass may be left out. Then the last difference between the prompts' predictions is
  used, or none where the guidance scale is low.
- If the first block changes the prompt's video tokens nearly as it did in the last step whose blocks all ran,
  what the other blocks added then is added again, and the negative prompt's pass is left out. So one decision
  holds for both prompts, and a difference comes only from a step in which all blocks ran for both. Two
  decisions would corrupt the difference, which the guidance scale multiplies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.models.protocols import Inputs, Runner
from ditflow.settings import Settings

Negative = Literal["run", "reused", "none"]


class Passes(NamedTuple):
    """What a step did for each prompt."""

    prompt: Literal["run", "reused"]
    negative: Negative  # `none`: not needed


def negative_pass(settings: Settings, scale: float, uses: int | None) -> Negative:
    """What a step whose prompt's pass runs does for the negative prompt.

    `uses`: how many such steps have reused the last difference; None if there is no difference.
    """
    if scale == 1 or scale < settings.negative_below:
        return "none"
    return "reused" if settings.negative == "alternate" and uses == 0 else "run"


def uses_after(negative: Negative) -> int | None:
    """The next step's `uses`: a step without the negative prompt makes the last difference too old."""
    return {"run": 0, "reused": 1, "none": None}[negative]


def negative_passes(settings: Settings, scales: Iterable[float]) -> list[Negative]:
    """What each of the steps after the guided ones does for the negative prompt, given their scales."""
    found, uses = [], None
    for scale in scales:
        found.append(negative_pass(settings, scale, uses))
        uses = uses_after(found[-1])
    return found


class StepCache:
    """Implements `ditflow.models.protocols.FirstBlock`: reuses what the other blocks added while

    mean |mark - kept mark| < threshold * mean |kept mark|, with mark = tokens leaving - entering the first.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.mark: Tensor | None = None  # [1, S, channels], of the last step whose blocks all ran
        self.residual: Tensor | None = None  # [1, S, channels], what its other blocks added
        self.may_reuse = False  # set before each step

    def reused(self, entering: Tensor, leaving: Tensor) -> Tensor | None:
        mark = leaving - entering
        if self.may_reuse and self.residual is not None:
            if mark.shape != self.mark.shape:
                raise DitflowError("the saved step cache is damaged: its shape is wrong; start a new run")
            if bool(_size(mark - self.mark) < self.threshold * _size(self.mark)):
                return self.residual
        self.mark = mark
        return None

    def keep(self, residual: Tensor) -> None:
        self.residual = residual


class Reuse:
    """Predictions with classifier-free guidance that reuse results of earlier steps, as the settings say."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.difference: Tensor | None = None  # prompt - negative prompt, of the last step that ran both
        self.uses: int | None = None  # see `negative_pass`
        threshold = settings.step_threshold
        self.cache = None if threshold is None else StepCache(threshold)

    def predict(
        self, runner: Runner, inputs: Inputs, negative_prompt: Tensor, scale: float
    ) -> tuple[Tensor, Passes]:
        """The prediction of a step, float32 [1, frames, channels, height, width], and what was run for it."""
        negative = negative_pass(self.settings, scale, self.uses)
        batch = [inputs, replace(inputs, prompt=negative_prompt)] if negative == "run" else [inputs]
        (prompt, *rest), is_fresh = self._forward(runner, batch, negative == "none" or self.uses is not None)
        if not is_fresh and negative == "run":
            negative = "reused"
        if is_fresh:
            self.uses = uses_after(negative)
        passes = Passes("run" if is_fresh else "reused", negative)
        if rest:
            self.difference = prompt - rest[0]
            return rest[0] + scale * self.difference, passes
        if negative == "reused":
            return prompt + (scale - 1) * self.difference, passes
        if is_fresh:
            self.difference = None
        return prompt, passes

    def _forward(self, runner: Runner, batch: list[Inputs], may_reuse: bool) -> tuple[list[Tensor], bool]:
        """The predictions, and whether all blocks ran. If not, there is only the prompt's prediction."""
        if self.cache is None:
            return runner.forward(batch, {}), True
        before, self.cache.may_reuse = self.cache.residual, may_reuse
        found = runner.forward_or_reuse(batch, self.cache)
        return found, self.cache.residual is not before

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on, by name. The tensors are never changed."""
        found = {}
        if self.difference is not None:
            found |= {"difference": self.difference, "uses": torch.tensor(self.uses)}
        if self.cache and self.cache.residual is not None:
            found |= {"mark": self.cache.mark, "residual": self.cache.residual}
        return found

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue from a state, or from none."""
        here = {name: tensor.to(device) for name, tensor in state.items() if name != "uses"}
        self.difference = here.get("difference")
        self.uses = int(state["uses"]) if "uses" in state else None
        if self.cache:
            self.cache.mark, self.cache.residual = here.get("mark"), here.get("residual")


def _size(tensor: Tensor) -> Tensor:
    """The sum of absolute values, in float32."""
    return torch.linalg.vector_norm(tensor, 1, dtype=torch.float32)
