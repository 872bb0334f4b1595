"""The bounds of every ratio, `bench/ratios.csv`; `python -m bench.timed.bounds FILE...` sets them.

A FILE is what pytest-benchmark wrote in one process (`make bench-accept-ratios`). A bound lies half-way, as a
factor, between the middle of what was measured and a slowdown of 1.5: as far from failing by chance as from
missing it. A ratio that differs too much between processes binds nobody. The measurements themselves go to
bench/results/cpu.json, for docs/performance.md.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from math import inf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from bench.timed.contest import SLOWDOWN

BENCH = Path(__file__).parents[1]
TABLE = BENCH / "ratios.csv"
RESULTS = BENCH / "results" / "cpu.json"
WIDTH = sqrt(SLOWDOWN)
STEADY = 1.25  # times its least is what a ratio may be: half the room that a bound leaves


class Bound(NamedTuple):
    """What a rival's ratio has to be, and how that was found."""

    least: float
    most: float
    set: str


Bounds = dict[tuple[str, str], Bound]  # by contest and rival


def read_bounds(path: Path = TABLE) -> Bounds:
    """The committed table; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            (row["name"], row["rival"]): Bound(float(row["least"]), float(row["most"]), row["set"])
            for row in csv.DictReader(file)
        }


def write_bounds(bounds: Bounds, path: Path = TABLE) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "rival", *Bound._fields])
        for (name, rival), bound in bounds.items():
            writer.writerow([name, rival, f"{bound.least:.3g}", f"{bound.most:.3g}", bound.set])


def broken(name: str, ratios: Mapping[str, float], bounds: Bounds) -> list[str]:
    """A line for each ratio of a contest that is beyond its bounds or has none."""
    lines = []
    for rival, ratio in ratios.items():
        bound, what = bounds.get((name, rival)), f"{name} against {rival}: ratio {ratio:.3g}"
        if bound is None:
            lines.append(f"{what} has no bounds; set them on a quiet machine: make bench-accept-ratios")
        elif ratio < bound.least:
            lines.append(f"{what}, at least {bound.least:.3g} expected: ours has become slower")
        elif ratio > bound.most:
            lines.append(
                f"{what}, at most {bound.most:.3g} expected: where ours has become faster, or the rival "
                "slower, and it is known why: make bench-accept-ratios"
            )
    return lines


def binds(name: str, rival: str, bounds: Bounds) -> bool:
    """Whether a slowdown could break this rival's bound."""
    return (name, rival) in bounds and bounds[name, rival].least > 0


def caught(name: str, ratios: Mapping[str, float], bounds: Bounds) -> list[str]:
    """The rivals that show ours to be slower than it should be."""
    return [
        rival
        for rival, ratio in ratios.items()
        if (name, rival) in bounds and ratio < bounds[name, rival].least
    ]


def accepted(runs: Sequence[Mapping[str, Any]]) -> tuple[Bounds, dict[str, Any]]:
    """Bounds and results (of each figure the median) from what pytest-benchmark wrote, run by run."""
    cpu, day = runs[0]["machine_info"]["cpu"].get("brand_raw", "unknown CPU"), runs[0]["datetime"][:10]
    bounds, contests = {}, []
    for same in zip(*(run["benchmarks"] for run in runs), strict=True):
        found = [each["extra_info"] for each in same]
        name, threads, loads = found[0]["name"], found[0]["threads"], [each["load"] for each in found]
        load = [min(map(min, loads)), max(map(max, loads))]
        code = found[0]["commit"][:9]
        how = f"{day} at {code}, {cpu}, threads {threads}, load {load[0]:.1f} to {load[1]:.1f}"
        ratios = {rival: [each["ratios"][rival] for each in found] for rival in found[0]["ratios"]}
        bounds |= {(name, rival): _bound(several, how) for rival, several in ratios.items()}
        medians = {rival: statistics.median(several) for rival, several in ratios.items()}
        seconds = statistics.median(each["seconds"] for each in found)
        contests.append(found[0] | {"seconds": seconds, "ratios": medians, "load": load})
    return bounds, {"kind": "cpu", "device": cpu, "date": day, "contests": contests}


def _bound(ratios: Sequence[float], how: str) -> Bound:
    least, most = min(ratios), max(ratios)
    measured = f"{how}: measured {least:.3g} to {most:.3g}"
    if most > STEADY * least:
        return Bound(0.0, inf, f"{measured}, too unsteady")
    middle = sqrt(least * most)
    return Bound(middle / WIDTH, middle * WIDTH, measured)


def main() -> None:
    files = list(map(Path, sys.argv[1:]))
    if not files or not all(file.is_file() for file in files):
        raise SystemExit("bench.timed.bounds: files from pytest-benchmark (--benchmark-json) are needed")
    bounds, results = accepted([json.loads(file.read_text(encoding="utf-8")) for file in files])
    write_bounds(read_bounds() | bounds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{len(bounds)} bounds written to {TABLE}, what was measured to {RESULTS}")
    print("docs/performance.md shows it after: python -m bench.report")


if __name__ == "__main__":
    main()
