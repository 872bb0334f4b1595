"""Shows plans: as tables for a reader, or as a mapping for a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ditflow.memory.presets import GIB
from ditflow.planning.beside_exact import BesideExact
from ditflow.planning.ceilings import Ceilings
from ditflow.planning.plan import Phase, Plan
from ditflow.settings import Settings

TERA, PETA = 10**12, 10**15
FILE_WIDTH = 140  # characters in a line, if the output is not a terminal


def as_mapping(
    plans: Sequence[Plan],
    chosen: Plan | None,
    why: str,
    ceilings: Ceilings | None,
    beside: BesideExact | None,
) -> dict[str, Any]:
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
        "presets": [
            {
                "name": plan.preset.name,
                "fits": plan.fits,
                "chosen": plan is chosen,
                "budget_bytes": plan.budget,
                "resident_blocks": plan.resident,
                "streamed_blocks": plan.streamed,
                "host_bytes": plan.host_bytes,
                "total_flops": plan.total_flops,
                **({"estimated_seconds": ceilings.run_seconds(plan)} if ceilings else {}),
                "phases": [_phase_mapping(phase, ceilings) for phase in plan.phases],
            }
            for plan in plans
        ],
        "why": why,
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


def attention_kernels(settings: Settings) -> str:
    """A sentence on what the plan does not show; nothing if all attention is `sdpa`, which plans assume."""
    forward = settings.attention_without_gradient
    if settings.attention == forward == "sdpa":
        return ""
    return (
        f" Attention is {forward} in forwards without gradient and {settings.attention} in the others; "
        "memory and times are planned with sdpa."
    )


def print_plans(
    console: Console,
    plans: Sequence[Plan],
    chosen: Plan | None,
    why: str,
    ceilings: Ceilings | None,
    beside: BesideExact | None,
) -> None:
    if not console.is_terminal:
        console.width = FILE_WIDTH
    if beside:
        console.print(_beside_table(beside, ceilings))
    console.print(_fit_table(plans, chosen))
    console.print(_table("Peak GPU memory of each phase, GiB", plans, lambda p: p.peak_bytes / GIB))
    console.print(_table("Work of one execution of each phase, TFLOP", plans, lambda p: p.flops / TERA))
    console.print(
        _table("Copied to the GPU in one execution of each phase, GiB", plans, lambda p: p.copied_bytes / GIB)
    )
    if ceilings:
        console.print(_table(_rates(ceilings), plans, ceilings.seconds, ceilings.run_seconds))
    console.print(why)


def _rates(ceilings: Ceilings) -> str:
    """Where the rates of times come from, as a title."""
    if ceilings.measured:
        return f"Least seconds, at the best rates measured on {ceilings.device} in {ceilings.dtype}"
    return (
        f"Least seconds, estimated, not measured: the published rates of {ceilings.device} in "
        f"{ceilings.dtype}, times the share that good libraries reach"
    )


def _beside_table(beside: BesideExact, ceilings: Ceilings | None) -> Table:
    memory = f"{beside.exact.budget / GIB:.1f} GiB"
    title = f"The exact run and this one, planned with the fastest preset that fits into {memory}"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    headings = ["", "preset", "run PFLOP", "peak GiB"]
    if ceilings:
        headings.append(f"least seconds on {ceilings.device}, {ceilings.kind}")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "preset") else "right", no_wrap=True)
    for name, plan in (("exact", beside.exact), ("this run", beside.planned)):
        peak = f"{plan.largest.peak_bytes / GIB:.1f}" + ("" if plan.fits else ", does not fit")
        seconds = [_number(ceilings.run_seconds(plan))] if ceilings else []
        table.add_row(name, plan.preset.name, f"{plan.total_flops / PETA:.2f}", peak, *seconds)
    return table


def _fit_table(plans: Sequence[Plan], chosen: Plan | None) -> Table:
    title = "Memory presets, planned on fake tensors (nothing has run)"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for heading in ("", "fits", "peak GiB", "budget GiB", "host GiB", "resident blocks", "run TFLOP"):
        table.add_column(heading, justify="left" if heading in ("", "fits") else "right", no_wrap=True)
    for plan in plans:
        table.add_row(
            plan.preset.name,
            "chosen" if plan is chosen else "yes" if plan.fits else f"no: {plan.largest.name}",
            f"{plan.largest.peak_bytes / GIB:.2f}",
            f"{plan.budget / GIB:.1f}",
            f"{plan.host_bytes / GIB:.1f}",
            f"{plan.resident}/{plan.resident + plan.streamed}",
            _number(plan.total_flops / TERA),
        )
    return table


def _table(
    title: str,
    plans: Sequence[Plan],
    value: Callable[[Phase], float],
    whole: Callable[[Plan], float] | None = None,  # of the whole run
) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for heading in ("", *(phase.name for phase in plans[0].phases), *(["whole run"] if whole else [])):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for plan in plans:
        values = [value(phase) for phase in plan.phases] + ([whole(plan)] if whole else [])
        table.add_row(plan.preset.name, *map(_number, values))
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
