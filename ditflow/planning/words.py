"""Shows plans: as tables for a reader, or as a mapping for a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ditflow.memory.presets import GIB
from ditflow.planning.beside_exact import BesideExact
from ditflow.planning.ceilings import Ceilings
from ditflow.planning.plan import Phase, Plan
from ditflow.planning.verdict import Planned, time_in_words

TERA, PETA = 10**12, 10**15
FILE_WIDTH = 140  # characters in a line, if the output is not a terminal


def as_mapping(planned: Planned, ceilings: Ceilings | None, beside: BesideExact | None) -> dict[str, Any]:
    """Plans as a mapping for JSON, in bytes, FLOPs and seconds."""
    found: dict[str, Any] = {}
    if ceilings:
        found["device"] = asdict(ceilings) | {"kind": ceilings.kind}
    if beside:
        found["beside_exact"] = {
            name: {
                "preset": plan.preset.name,
                "fits": plan.fits,
                "total_flops": plan.total_flops,
                "peak_bytes": plan.largest.peak_bytes,
                **({"estimated_seconds": ceilings.run_seconds(plan)} if ceilings else {}),
            }
            for name, plan in beside._asdict().items()
        }
    return found | {
        "computes_on": planned.target.device,
        "verdict": planned.verdict,
        "notes": planned.notes,
        "presets": [
            {
                "name": plan.preset.name,
                "fits": plan.fits,
                "chosen": plan is planned.chosen,
                "budget_bytes": plan.budget,
                "resident_blocks": plan.resident,
                "streamed_blocks": plan.streamed,
                "host_bytes": plan.host_bytes,
                "total_flops": plan.total_flops,
                **({"estimated_seconds": ceilings.run_seconds(plan)} if ceilings else {}),
                "phases": [_phase_mapping(phase, ceilings) for phase in plan.phases],
            }
            for plan in planned.plans
        ],
    }


def _phase_mapping(phase: Phase, ceilings: Ceilings | None) -> dict[str, Any]:
    return {
        "name": phase.name,
        "times": phase.times,
        "peak_bytes": phase.peak_bytes,
        "flops": phase.flops,
        "attention_flops": phase.attention_flops,
        "int8_flops": phase.int8_flops,
        "moved_bytes": phase.moved_bytes,
        "copied_bytes": phase.copied_bytes,
        **({"estimated_seconds": ceilings.seconds(phase)} if ceilings else {}),
    }


def print_plans(
    console: Console, planned: Planned, ceilings: Ceilings | None, beside: BesideExact | None
) -> None:
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for line in filter(None, (planned.verdict, time_in_words(planned, ceilings))):
        console.print(line, soft_wrap=True, markup=False)
    if beside:
        console.print(_beside_table(planned, beside, ceilings))
    console.print(_fit_table(planned))
    place = "memory" if planned.on_cpu else "GPU memory"
    console.print(_table(f"Peak {place} of each phase, GiB", planned, lambda p: p.peak_bytes / GIB))
    console.print(_table("Work of one execution of each phase, TFLOP", planned, lambda p: p.flops / TERA))
    if not planned.on_cpu:
        title = "Copied to the GPU in one execution of each phase, GiB"
        console.print(_table(title, planned, lambda p: p.copied_bytes / GIB))
    if ceilings:
        console.print(_table(_rates(ceilings), planned, ceilings.seconds, ceilings.run_seconds))
    if planned.notes:
        console.print(planned.notes)


def _rates(ceilings: Ceilings) -> str:
    """Where the rates of times come from, as a title."""
    if ceilings.measured:
        return f"Least seconds, at the best rates measured on {ceilings.device} in {ceilings.dtype}"
    return (
        f"Least seconds, estimated, not measured: the published rates of {ceilings.device} in "
        f"{ceilings.dtype}, times the share that good libraries reach"
    )


def _name(planned: Planned, plan: Plan) -> str:
    """What a table calls a plan."""
    return "this run" if planned.on_cpu else plan.preset.name


def _beside_table(planned: Planned, beside: BesideExact, ceilings: Ceilings | None) -> Table:
    memory = f"{beside.exact.budget / GIB:.1f} GiB"
    title = f"The exact run and this one, planned with the fastest preset that fits into {memory}"
    if planned.on_cpu:
        title = "The exact run and this one"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    headings = ["", *([] if planned.on_cpu else ["preset"]), "run PFLOP", "peak GiB"]
    if ceilings:
        headings.append(f"least seconds on {ceilings.device}, {ceilings.kind}")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "preset") else "right", no_wrap=True)
    for name, plan in (("exact", beside.exact), ("this run", beside.planned)):
        peak = f"{plan.largest.peak_bytes / GIB:.1f}" + ("" if plan.fits else ", does not fit")
        seconds = [_number(ceilings.run_seconds(plan))] if ceilings else []
        preset = [] if planned.on_cpu else [plan.preset.name]
        table.add_row(name, *preset, f"{plan.total_flops / PETA:.2f}", peak, *seconds)
    return table


def _fit_table(planned: Planned) -> Table:
    title = "Memory presets" if not planned.on_cpu else "Memory"
    table = Table(
        title=f"{title}, planned on fake tensors (nothing has run)", title_justify="left", box=SIMPLE
    )
    columns = ["", "fits", "peak GiB", "budget GiB"]
    columns += ["run TFLOP"] if planned.on_cpu else ["host GiB", "resident blocks", "run TFLOP"]
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("", "fits") else "right", no_wrap=True)
    for plan in planned.shown:
        fits = "yes" if plan.fits else f"no: {plan.largest.name}"
        on_card = [f"{plan.host_bytes / GIB:.1f}", f"{plan.resident}/{plan.resident + plan.streamed}"]
        table.add_row(
            _name(planned, plan),
            "chosen" if plan is planned.chosen and not planned.on_cpu else fits,
            f"{plan.largest.peak_bytes / GIB:.2f}",
            f"{plan.budget / GIB:.1f}",
            *([] if planned.on_cpu else on_card),
            _number(plan.total_flops / TERA),
        )
    return table


def _table(
    title: str,
    planned: Planned,
    value: Callable[[Phase], float],
    whole: Callable[[Plan], float] | None = None,  # of the whole run
) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    phases = planned.plans[0].phases
    for heading in ("", *(phase.name for phase in phases), *(["whole run"] if whole else [])):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for plan in planned.shown:
        values = [value(phase) for phase in plan.phases] + ([whole(plan)] if whole else [])
        table.add_row(_name(planned, plan), *map(_number, values))
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
