"""The memory that a run has: the preset in use, and a smaller one once a phase runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ditflow.errors import DitflowError
from ditflow.memory.capacity import cap
from ditflow.planning.choice import choose_plan, smaller_plan
from ditflow.settings import Settings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Room:
    """The plan that a run follows. It changes when memory runs out, and `on_change` hears of it.

    Raises DitflowError where the preset asked for does not fit.
    """

    def __init__(self, settings: Settings, model: Path, device: torch.device, optimises: bool):
        self.settings, self.device = settings, device
        # the folder, whatever name found it
        self.planned = replace(settings, model=str(model), guidance=optimises)
        self.plan = choose_plan(self.planned, device)
        self.on_change: Callable[[], None] = lambda: None
        cap(settings.memory, device)

    @property
    def decode_tile(self) -> str:
        given = self.settings.decode_tile
        return self.plan.preset.decode_tile if given == "auto" else given

    @property
    def resolved(self) -> Settings:
        """The settings with what was chosen in the place of `auto`: what a replay has to use."""
        return replace(self.settings, memory=self.plan.preset.name, decode_tile=self.decode_tile)

    def run(self, phase: str, work: Callable[[], Result]) -> Result:
        """`work`, again with the next smaller preset as long as memory runs out.

        Raises DitflowError where the smallest one is not small enough.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                pass  # outside of the handler nothing holds the failed attempt's tensors any more
            self._step_down(phase)

    def _step_down(self, phase: str) -> None:
        smaller = smaller_plan(self.planned, self.device, self.plan.preset)
        if smaller is None:
            raise DitflowError(
                f"out of memory in {phase} with the smallest memory preset; fewer --frames or a smaller "
                "--size need less, and so does a GPU that nothing else uses"
            )
        self.plan = smaller
        self.settings = replace(self.settings, decode_tile="auto")
        logger.warning("out of memory in %s: going on with memory preset %s", phase, smaller.preset.name)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.on_change()
