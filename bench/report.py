"""Makes docs/performance.md and its pictures from what is on file: `python -m bench.report`.

Sources: bench/results/*.json (`bench.gpu`, `make bench-accept-ratios`, `bench.presets`),
configs/devices/*.yaml (`bench.ceilings`), bench/published.yaml and the presets' table of README.md. No number
is typed by hand; what is planned, or missing, says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from bench.plots import roofline, stacked_bars, stairs
from bench.tables import pass_tables, ratio_table, step_tables
from bench.timed.bounds import Bounds, read_bounds
from bench.timed.contest import SLOWDOWN
from ditflow.memory.presets import GIB

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = Path("docs/performance.md"), Path("docs/performance")
TERA, PETA = 1e12, 1e15
RATES = (10, 50, 200)  # TFLOP/s that a card may sustain, for a reader to find theirs between
DRAWN = 24  # frames, of the pictures


def main() -> None:
    for path, text in report(ROOT).items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)


def report(root: Path) -> dict[Path, str]:
    """Every file of the report and what belongs in it, from the sources under `root`."""
    files = sorted((root / "bench/results").glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    results = {kind: [each for each in found if each["kind"] == kind] for kind in ("planned", "gpu", "cpu")}
    devices = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted((root / "configs/devices").glob("*.yaml"))
    ]
    published = yaml.safe_load((root / "bench/published.yaml").read_text(encoding="utf-8"))
    pictures: dict[Path, str] = {}
    sections = [
        HEAD,
        f"{EXPECT}\n\n{preset_table(root / 'README.md')}",
        *planned(results["planned"], pictures),
        *ceilings(devices, results["planned"], pictures),
        measured_on_gpus(results["gpu"]),
        measured_on_cpus(results["cpu"], read_bounds(root / "bench/ratios.csv")),
        other_systems(published),
        TAIL,
    ]
    return {PAGE: "\n\n".join(section.strip() for section in sections) + "\n", **pictures}


def preset_table(readme: Path) -> str:
    """The planned presets of the README, which `make test` holds against the plan."""
    lines = readme.read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("| preset | cards |"))
    return "\n".join(takewhile(lambda line: line.startswith("|"), lines[first:]))


def planned(plans: Sequence[Mapping[str, Any]], pictures: dict[Path, str]) -> Iterator[str]:
    """What needs no measurement; its pictures are added to `pictures`."""
    if not plans:
        yield "Work and copies by phase: **no plan is on file.** `python -m bench.presets` writes it."
    for plan in plans:
        yield f"{WORK}\n\n{plan['model']}. {LEAST}"
        for frames in dict.fromkeys(run["frames"] for run in plan["runs"]):
            yield f"### {frames} frames\n\n{card_table(plan, frames)}"
        drawn = drawn_runs(plan)
        pictures[PICTURES / "phases.svg"] = stacked_bars(
            f"Planned work of a default run by phase, {DRAWN} frames",
            "PFLOP",
            {
                name: by_phase(run, lambda phase: phase["times"] * phase["flops"] / PETA)
                for name, run in drawn
            },
        )
        peaks = {name: by_phase(run, lambda phase: phase["peak_bytes"] / GIB) for name, run in drawn}
        pictures[PICTURES / "memory.svg"] = stairs(
            f"Planned peak of the card's memory through a run, {DRAWN} frames", "GiB", peaks
        )
        yield PHASES


def drawn_runs(plan: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The runs that are in pictures, and their presets."""
    return [(run["preset"], run) for run in plan["runs"] if run["frames"] == DRAWN and run["fits"]]


def by_phase(run: Mapping[str, Any], value: Callable[[Mapping], float]) -> dict[str, float]:
    return {phase["name"]: value(phase) for phase in run["phases"]}


def card_table(plan: Mapping[str, Any], frames: int) -> str:
    rates = [f"at least, at {rate} TFLOP/s" for rate in RATES]
    columns = ["preset", "peak GiB", "largest phase", "PFLOP", "GiB copied a run", *rates]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for run in plan["runs"]:
        if run["frames"] != frames:
            continue
        largest = max(run["phases"], key=lambda phase: phase["peak_bytes"])
        if not run["fits"]:
            cells = [f"does not fit ({largest['peak_bytes'] / GIB:.1f})", largest["name"]]
            cells += ["-"] * (2 + len(RATES))
        else:
            work = total(run, "flops")
            cells = [f"{largest['peak_bytes'] / GIB:.1f}", largest["name"], f"{work / PETA:.1f}"]
            cells += [f"{total(run, 'copied_bytes') / GIB:.0f}"]
            cells += [duration(work / (rate * TERA)) for rate in RATES]
        lines.append(f"| {run['preset']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def total(run: Mapping[str, Any], what: str) -> float:
    return sum(phase["times"] * phase[what] for phase in run["phases"])


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def ceilings(
    devices: Sequence[Mapping], plans: Sequence[Mapping[str, Any]], pictures: dict[Path, str]
) -> Iterator[str]:
    """What each device was seen to do at best, and what a run takes there at the very least."""
    runs = [run for plan in plans for _, run in drawn_runs(plan)]
    least = f"a default run of {DRAWN} frames, at least"
    columns = ["device", "measured", "products TFLOP/s", "attention TFLOP/s", "from the host GB/s", least]
    lines = [
        "## Ceilings of devices, measured",
        "",
        f"| {' | '.join(columns)} |",
        "| --- " * len(columns) + "|",
    ]
    for each in devices:
        seconds = min((run_seconds(run, each) for run in runs), default=None)
        lines.append(
            f"| {each['device']} ({each['dtype']}) | {each['measured']} | {each['product_flops'] / TERA:.3g} "
            f"| {each['attention_flops'] / TERA:.3g} | {each['copied_bytes'] / 1e9:.3g} "
            f"| {'-' if seconds is None else duration(seconds)} |"
        )
    yield "\n".join(lines)
    for each in devices if runs else []:
        picture = PICTURES / f"roofline-{each['device']}.svg"
        pictures[picture] = device_roofline(each, plans)
        yield f"![Roofline of {each['device']}]({picture.relative_to(PAGE.parent)})"
    if runs:
        yield ROOFLINE


def run_seconds(run: Mapping[str, Any], device: Mapping[str, Any]) -> float:
    """As `ditflow plan --device` has it: arithmetic, or copies where they take longer."""
    return sum(
        phase["times"]
        * max(
            (phase["flops"] - phase["attention_flops"]) / device["product_flops"]
            + phase["attention_flops"] / device["attention_flops"],
            phase["copied_bytes"] / device["copied_bytes"],
        )
        for phase in run["phases"]
    )


def device_roofline(device: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> str:
    """The optimisation steps of the presets that stream, under a device's roof."""
    points = {
        name: (phase["flops"], phase["copied_bytes"])
        for plan in plans
        for name, run in drawn_runs(plan)
        for phase in run["phases"]
        if phase["name"] == "optimise" and phase["copied_bytes"]
    }
    title = f"{device['device']}: an optimisation step, FLOP for each byte copied to it, {DRAWN} frames"
    return roofline(title, device["product_flops"], device["copied_bytes"], points)


def measured_on_gpus(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["## Measured on GPUs", ""]
    if not results:
        lines.append("Nothing yet: **no GPU has been measured.** On one, `python -m bench.gpu` does it.")
    for found in results:
        best = found["ceilings"]
        lines += [
            f"### {found['device']}",
            "",
            f"{found['date']}, {found['commit']}, torch {found['torch']}, triton {found['triton']}. "
            f"At best it was seen to multiply {best['product_flops'] / TERA:.0f} TFLOP/s "
            f"and to copy {best['copied_bytes'] / TERA:.2f} TB/s.",
            pass_tables(found["passes"]),
            "Whole steps, random weights; `kernels`: what part of an update the kernels' passes are.",
            step_tables(found["steps"], found["passes"]),
        ]
    return "\n".join(lines)


def measured_on_cpus(results: Sequence[Mapping[str, Any]], bounds: Bounds) -> str:
    lines = ["## Measured on a CPU", "", RATIOS, ""]
    if not results:
        lines.append("Nothing yet: **no ratio has been measured.** `make bench-accept-ratios` does it.")
    for found in results:
        load = [value for each in found["contests"] for value in each["load"]]
        first = found["contests"][0]
        lines += [
            f"{found['device']}, {found['date']}, {first['commit']}, torch {first['torch']}, "
            f"threads: {first['threads']}, load {min(load):.1f} to {max(load):.1f}.",
            ratio_table(found["contests"], bounds),
            *(f"- {each['name']}: {each['size']}" for each in found["contests"]),
        ]
    return "\n".join(lines)


def other_systems(published: Sequence[Mapping[str, str]]) -> str:
    columns = ["system", "time", "memory", "model", "frames", "hardware", "source"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    lines += [f"| {' | '.join(str(each[column]) for column in columns)} |" for each in published]
    return "\n".join(["## Other systems, as published", "", COMPARABLE, "", *lines])


HEAD = """# Performance

Made by `python -m bench.report`; `make test` fails where it is not what that makes. No number here is typed
by hand. **Planned** means counted, by running the code itself on tensors without values: memory and work are
exact for it, times are not known. **Measured** names the device, the day and the commit."""

EXPECT = """## What to expect of a card: planned

The larger CogVideoX in its own precision and size; nothing of this has run. A preset is for a card of that
size (`--memory`): GiB at the peak on the card and of host memory, the blocks of the model that stay on the
card while the others are streamed from host memory, and what a guided step computes a second time.
`ditflow plan` prints it for other settings."""

WORK = "## Work and copies of a default run: planned"

LEAST = """The least times are the work divided by what a card sustains: find yours between the columns.
Copies run beside the computation where host memory can be pinned; they count where a card's link is slow."""

PHASES = """## Time by phase, and memory through a run: planned

![Work by phase](performance/phases.svg)

Time follows work, so this is where the time of a run will go. What was measured of single steps is further
down.

![Memory by phase](performance/memory.svg)

Each phase is drawn equally wide. A timeline within a step takes a measurement and is missing so far."""

ROOFLINE = """Presets for small cards stream blocks from host memory. Under the sloping part of the roof
copies decide, under the level part arithmetic does. A preset without a point copies nothing while it
optimises. The points are planned, the roof is measured."""

RATIOS = f"""Ours and its rivals in turns within a round; the ratio is how many times our time a rival takes,
the median of the rounds and of three processes. `make bench` fails where one leaves its bounds, which are
narrow enough to show a slowdown of {SLOWDOWN}; a ratio that differs too much between processes has none.
Memory that is freed stays the process's (`bench/timed/steady.py`): the motion flow's `reference` takes two to
three times as long without that."""

COMPARABLE = """From papers and repositories, not measured here. **Not comparable as they stand:** models,
frame counts and cards differ or are not stated, and the methods' results differ too. The one system that
computes the same as this one is the released DiTFlow; a comparison with it takes both on the same card with
the same settings. Memory that a card has is not memory that a run needs."""

TAIL = """## How it was measured

[bench/README.md](../bench/README.md) says what each command does and how to read it; older measurements on a
CPU are in [bench/LOG.md](../bench/LOG.md)."""


if __name__ == "__main__":
    main()
