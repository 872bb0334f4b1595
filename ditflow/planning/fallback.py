"""The memory that a run has: the preset in use, and a smaller one once a phase runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ditflow.errors import DitflowError
from ditflow.memory.capacity import capped, give_back, ran_out
from ditflow.planning.choice import choose_plan, smaller_plan
from ditflow.settings import Settings
from ditflow.settings.settings import TILES

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def reading_only(settings: Settings, folder: Path) -> Settings:
    """What to plan for a job that ends where a clip's motion has been read in a folder's model."""
    return replace(settings, model=str(folder), guidance=False, injection=False, decode_tile=TILES[-1])


class Room:
    """The plan that a run follows. It changes when memory runs out, and `on_change` hears of it.

    While it is entered, the run is held to the memory it may have. Raises DitflowError where no preset fits,
    or not the one asked for.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        planned: Settings,  # what is to be planned, where that is not the whole run
    ):
        self.settings, self.device, self.planned = settings, device, planned
        give_back(device)
        logger.info("choosing a memory preset")
        self.plan = choose_plan(planned, device)
        self.on_change: Callable[[], None] = lambda: None
        self.cap = capped(settings.memory, device)

    def __enter__(self) -> Room:
        self.cap.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.cap.__exit__(*error)
        give_back(self.device)

    @property
    def resolved(self) -> Settings:
        """The settings with what was chosen in the place of `auto`: what a replay has to use."""
        preset, tile = self.plan.preset, self.settings.decode_tile
        tile = preset.decode_tile if tile == "auto" else tile
        return replace(self.settings, preset=preset.name, decode_tile=tile)

    def run(self, phase: str, work: Callable[[], Result]) -> Result:
        """`work`, again with a smaller plan as long as memory runs out.

        Raises DitflowError where no smaller one is left.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not ran_out(error):
                    raise
            # outside of the handler nothing holds the failed attempt's tensors any more
            self._step_down(phase)

    def _step_down(self, phase: str) -> None:
        give_back(self.device)
        if phase == "decode":  # the tile is to blame
            self.settings, self.planned = (
                replace(settings, decode_tile="auto") for settings in (self.settings, self.planned)
            )
        smaller = None if phase == "encode" else smaller_plan(self.planned, self.device, self.plan, phase)
        if smaller is None:
            raise DitflowError(
                f"out of memory in {phase}, and no memory preset needs less; fewer --frames or a smaller "
                "--size do, and a GPU that nothing else uses has more"
            )
        self.plan = smaller
        logger.warning(
            "out of memory in %s: going on with memory preset %s, %d blocks on the device",
            *(phase, smaller.preset.name, smaller.resident),
        )
        self.on_change()
