"""Less work in the steps after the guided ones: passes of the model that are left out or reused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

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


class Reuse:
    """Predictions with classifier-free guidance that reuse results of earlier steps, as the settings say."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.difference: Tensor | None = None  # prompt - negative prompt, of the last step that ran both
        self.uses: int | None = None  # see `negative_pass`

    def predict(
        self, runner: Runner, inputs: Inputs, negative_prompt: Tensor, scale: float
    ) -> tuple[Tensor, Passes]:
        """The prediction of a step, float32 [1, frames, channels, height, width], and what was run for it."""
        negative = negative_pass(self.settings, scale, self.uses)
        batch = [inputs, replace(inputs, prompt=negative_prompt)] if negative == "run" else [inputs]
        prompt, *rest = runner.forward(batch, {})
        self.uses = uses_after(negative)
        if rest:
            self.difference = prompt - rest[0]
            return rest[0] + scale * self.difference, Passes("run", "run")
        if negative == "reused":
            return prompt + (scale - 1) * self.difference, Passes("run", "reused")
        self.difference = None
        return prompt, Passes("run", "none")

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on, by name. The tensors are never changed."""
        if self.difference is None:
            return {}
        return {"difference": self.difference, "uses": torch.tensor(self.uses)}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue from a state, or from none."""
        difference = state.get("difference")
        self.difference = None if difference is None else difference.to(device)
        self.uses = None if difference is None else int(state["uses"])
