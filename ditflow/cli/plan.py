"""`ditflow plan`, and what a run is planned for."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ditflow.cli.terminal import one_line
from ditflow.files import json_text
from ditflow.jobs.device import choose_device, gpu_count, is_on_cpu
from ditflow.planning.ceilings import Ceilings, ceilings_of_card, read_ceilings
from ditflow.progress import quieten_libraries
from ditflow.settings import Settings

if TYPE_CHECKING:
    from ditflow.planning.verdict import Target


def print_plan(options: argparse.Namespace, settings: Settings) -> None:
    """Plan a run with every preset and print the plans, for a reader or as JSON."""
    ceilings = read_ceilings(options.estimate_on) if options.estimate_on else None
    if ceilings:
        ceilings.check_compute(settings.compute)
    if not options.quiet:
        run = f"{settings.model}, {settings.frames} frames of {settings.size}"
        print(f"ditflow: planning {one_line(run)}", file=sys.stderr)
    quieten_libraries()
    from ditflow.planning import words
    from ditflow.planning.beside_exact import beside_exact
    from ditflow.planning.verdict import plan_all

    target, here = _target(settings, ceilings)
    planned = plan_all(settings, target)
    beside = None
    if planned.chosen or not planned.on_cpu:
        beside = beside_exact(settings, planned.chosen, target.device)
    rates = ceilings or here
    if options.json:
        print(json_text(words.as_mapping(planned, rates, beside)))
    else:
        from ditflow.cli.screen import CleanConsole

        words.print_plans(CleanConsole(), planned, rates, beside)


def _target(settings: Settings, asked: Ceilings | None) -> tuple[Target, Ceilings | None]:
    """What to plan for: the device asked for, else this machine, with its GPU's rates if known."""
    import torch

    from ditflow.planning.verdict import Target

    if asked and asked.gigabytes:
        return Target.elsewhere(settings, asked.gigabytes), None
    if asked or is_on_cpu(settings):
        return Target.here(settings, torch.device("cpu")), None
    if not gpu_count():
        return Target.elsewhere(settings, None), None
    device = choose_device(settings)
    return Target.here(settings, device), ceilings_of_card(torch.cuda.get_device_name(device))
