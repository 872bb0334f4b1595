"""Two losses in one run: a loss with a backward pass in the first guided steps, `x0` in those after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ditflow.guidance.estimates import EstimateGuidance
from ditflow.guidance.optimise import Guidance, OnUpdate, Optimised
from ditflow.models.protocols import Injected, Inputs, Runner, Variable


@dataclass
class SwitchedGuidance:
    """The optimisation of latents in every guided step, by one of two guidances."""

    first: Guidance
    then: EstimateGuidance
    first_steps: int  # guided steps of `first`
    current: Guidance | EstimateGuidance = field(init=False)  # the one that optimised last

    variable: ClassVar[Variable] = "latents"

    def __post_init__(self) -> None:
        self.current = self.first

    def optimise(
        self,
        runner: Runner,
        inputs: Inputs,
        injected: Injected,
        index: int,
        on_update: OnUpdate = lambda: None,
    ) -> Optimised:
        """Optimise the latents in guided step `index`."""
        self.current = self.first if index < self.first_steps else self.then
        return self.current.optimise(runner, inputs, injected, index, on_update)

    @property
    def may_overflow(self) -> bool:
        """Whether the loss scale can explain a non-finite gradient of the last guided step."""
        return self.current.may_overflow

    @property
    def gradient_reuse(self) -> int:
        """Updates that the last guided step made with each gradient."""
        return self.current.gradient_reuse

    @property
    def still(self) -> bool:
        """Whether the clip shows no motion, so that there is nothing to match."""
        return self.first.still

    @property
    def skipped(self) -> int:
        """How many gradients overflowed, whose updates were skipped."""
        return self.first.skipped

    def state(self) -> dict[str, Tensor]:
        """What the next guided step depends on, besides the number of skipped updates, by name."""
        return self.then.state()

    def restore(self, skipped: int, state: Mapping[str, Tensor]) -> None:
        """Go on from the state that a guided step left."""
        self.first.restore(skipped, {})
        self.then.restore(0, state)


AnyGuidance = Guidance | EstimateGuidance | SwitchedGuidance
