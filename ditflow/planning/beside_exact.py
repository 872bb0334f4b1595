"""A run that saves work beside the same run without approximations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ditflow.memory.presets import PRESETS, Preset, budget, presets
from ditflow.memory.torch_state import torch_state
from ditflow.planning.choice import asked_preset, make_plans
from ditflow.planning.plan import Plan
from ditflow.settings import Settings
from ditflow.settings.speed import exact


class BesideExact(NamedTuple):
    """Both with the fastest preset that fits into the same memory."""

    exact: Plan
    planned: Plan


@torch_state()
def beside_exact(settings: Settings, chosen: Plan | None, device: str = "cuda") -> BesideExact | None:
    """Plans the exact run in the chosen plan's memory; None if nothing that a speed sets differs from it.

    If no plan is chosen, both are for a card of the largest preset. `device`: its type.
    """
    without = replace(exact(settings), speed=settings.speed)
    if without == settings:
        return None
    if chosen is None:
        size = presets()[-1].gigabytes
        return BesideExact(plan_for_card(without, size), plan_for_card(settings, size))
    name = asked_preset(settings)
    wanted = presets()[: PRESETS.index(name) + 1] if name else presets()
    return BesideExact(_fastest(without, wanted, device, chosen.budget), chosen)


def plan_for_card(settings: Settings, gigabytes: int) -> Plan:
    """The plan with the fastest preset that fits a GPU with so much memory, or with the smallest."""
    wanted = [preset for preset in presets() if preset.gigabytes <= gigabytes]
    return _fastest(settings, wanted, "cuda", budget(gigabytes))


def _fastest(settings: Settings, wanted: Sequence[Preset], device: str, memory: int) -> Plan:
    return make_plans(settings, wanted[::-1], device, memory, until_one_fits=True)[-1]
