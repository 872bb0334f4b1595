"""The memory plan that a run follows, and the next smaller one if a phase runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ditflow.errors import SettingsError, TemporaryError
from ditflow.memory.capacity import capped, give_back, ran_out
from ditflow.models.families import family_of
from ditflow.planning.choice import choose_plan, smaller_plan
from ditflow.planning.plan import Plan
from ditflow.settings import Settings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def reading_only(settings: Settings, folder: Path) -> Settings:
    """Settings for planning a job that only reads a clip's motion with the model in a folder."""
    smallest = family_of(str(folder)).tiles[-1]
    off = {"guidance": False, "reference_noise": "clean", "injection": False}
    return replace(settings, model=str(folder), decode_tile=smallest, **off)


class MemoryFallback:
    """Holds a run's plan. If memory runs out, switches to a smaller plan and calls `on_change`.

    As a context manager, it limits the run to the memory it may use. Raises DitflowError if no preset fits,
    or if the requested one does not.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        planned: Settings,  # the settings to plan: those of the part of a run that the job does
    ):
        self.settings, self.device, self.planned = settings, device, planned
        give_back(device)
        logger.info("choosing a memory preset" if self.on_gpu else "planning memory")
        self.plan = choose_plan(planned, device)
        check_streaming(settings, self.plan)
        self.on_change: Callable[[], None] = lambda: None
        self.cap = capped(settings.memory, device)

    def __enter__(self) -> MemoryFallback:
        self.cap.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.cap.__exit__(*error)
        give_back(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def summary(self) -> str:
        """The plan in a few words. Presets are named after GPUs, so a CPU run does not mention them."""
        preset = self.plan.preset
        return f"memory preset {preset.name}" if self.on_gpu else preset.checkpointing

    @property
    def resolved(self) -> Settings:
        """The settings with `auto` replaced by what was chosen, as a replay needs them."""
        preset, tile = self.plan.preset, self.settings.decode_tile
        tile = preset.tile(family_of(self.planned.model).tiles) if tile == "auto" else tile
        return replace(self.settings, preset=preset.name, decode_tile=tile)

    def run(self, phase: str, work: Callable[[], Result]) -> Result:
        """Return the result of `work`; while memory runs out, repeat it with smaller plans.

        Raises DitflowError if no smaller plan is left.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not ran_out(error):
                    raise
            # not in the handler: there the error still holds the failed attempt's tensors
            self._step_down(phase)

    def _step_down(self, phase: str) -> None:
        give_back(self.device)
        if phase == "decode":  # drop a fixed tile, so that the smaller preset's tile is used
            self.settings, self.planned = (
                replace(settings, decode_tile="auto") for settings in (self.settings, self.planned)
            )
        smaller = None if phase == "encode" else smaller_plan(self.planned, self.device, self.plan, phase)
        if smaller is None:
            raise TemporaryError(
                f"out of memory in {phase}, and no memory preset needs less; use fewer --frames, a smaller "
                "--size, or a device with more free memory"
            )
        check_streaming(self.settings, smaller)
        self.plan = smaller
        logger.warning(
            "out of memory in %s: continuing with %s and %d of %d blocks resident",
            *(phase, self.summary, smaller.resident, smaller.resident + smaller.streamed),
        )
        self.on_change()


def check_streaming(settings: Settings, plan: Plan) -> None:
    """Raises SettingsError if a plan streams weights that the engine needs resident."""
    if settings.engine == "tensorrt" and plan.streamed:
        raise SettingsError(
            "--engine tensorrt needs all weights on the device, and this memory preset streams them: "
            "use a larger --memory, or --engine torch"
        )
