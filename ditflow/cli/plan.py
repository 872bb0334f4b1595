"""`ditflow plan`."""

from __future__ import annotations

import argparse
import sys

from ditflow.cli.terminal import one_line
from ditflow.files import json_text
from ditflow.planning.ceilings import read_ceilings
from ditflow.progress import quieten_libraries
from ditflow.settings import Settings


def print_plan(options: argparse.Namespace, settings: Settings) -> None:
    """Plan a run with every preset and print the plans, for a reader or as JSON."""
    ceilings = read_ceilings(options.estimate_on) if options.estimate_on else None
    if ceilings:
        ceilings.check_compute(settings.compute)
    if not options.quiet:
        run = f"{settings.model}, {settings.frames} frames of {settings.size}"
        print(f"ditflow: planning {one_line(run)}", file=sys.stderr)
    quieten_libraries()
    from ditflow.jobs.plan import plan_with_rates
    from ditflow.planning import words
    from ditflow.planning.beside_exact import beside_exact

    planned, rates = plan_with_rates(settings, ceilings)
    beside = None
    if planned.chosen or not planned.on_cpu:
        beside = beside_exact(settings, planned.chosen, planned.target.device)
    if options.json:
        print(json_text(words.as_mapping(planned, rates, beside)))
    else:
        from ditflow.cli.screen import CleanConsole

        words.print_plans(CleanConsole(), planned, rates, beside)
