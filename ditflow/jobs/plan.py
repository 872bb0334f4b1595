"""Plans a run for this machine or for another one, without running it."""

from __future__ import annotations

import torch

from ditflow.jobs.device import choose_device, gpu_count, is_on_cpu
from ditflow.planning.ceilings import Ceilings, ceilings_of_card, read_ceilings
from ditflow.planning.verdict import Planned, Target, plan_all
from ditflow.settings import Settings


def plan(settings: Settings, estimate_on: str = "") -> Planned:
    """The memory and work of a run with every preset, and the one that it would take.

    `estimate_on`: a card of `configs/devices/`, such as rtx-4090, instead of this machine. Raises
    DitflowError for settings that a run would refuse.
    """
    ceilings = read_ceilings(estimate_on) if estimate_on else None
    return plan_with_rates(settings, ceilings)[0]


def plan_with_rates(settings: Settings, asked: Ceilings | None) -> tuple[Planned, Ceilings | None]:
    """The plan for the device asked for, else for this machine, and the device's rates, if known."""
    target, here = plan_target(settings, asked)
    return plan_all(settings, target), asked or here


def plan_target(settings: Settings, asked: Ceilings | None = None) -> tuple[Target, Ceilings | None]:
    """What a plan is for: the device asked for, or else this machine, and its GPU's rates, if known."""
    if asked and asked.gigabytes:
        return Target.elsewhere(settings, asked.gigabytes), None
    if asked or is_on_cpu(settings):
        return Target.here(settings, torch.device("cpu")), None
    if not gpu_count():
        return Target.elsewhere(settings, None), None
    device = choose_device(settings)
    return Target.here(settings, device), ceilings_of_card(torch.cuda.get_device_name(device))
