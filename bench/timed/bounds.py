"""The bounds of every ratio, `bench/ratios.csv`; `python -m bench.timed.bounds FILE...` sets them.

Each FILE has the ratios that one process measured (`make bench-accept-ratios`). A bound lies halfway, as a
factor, between the middle of these and a slowdown of 1.5: a false alarm is as unlikely as a missed slowdown.
A ratio that differs too much between processes has no bounds. The medians go to bench/results/cpu.json, for
docs/performance.md.
"""

import csv
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from math import inf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

CALLS, PLANTED = 2, 3  # of a side in a round; of ours with a planted slowdown
SLOWDOWN = PLANTED / CALLS
BENCH = Path(__file__).parents[1]
TABLE = BENCH / "ratios.csv"
RESULTS = BENCH / "results" / "cpu.json"
WIDTH = sqrt(SLOWDOWN)
STEADY = 1.25  # the most that a ratio may differ by, as a factor: half the distance to a bound


class Bound(NamedTuple):
    """Limits of a rival's ratio, and how they were found."""

    least: float
    most: float
    set: str


Bounds = dict[tuple[str, str], Bound]  # by contest and rival


def read_bounds(path: Path = TABLE) -> Bounds:
    """The committed table; empty if there is no file."""
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
    """A line for each ratio of a contest that is outside its bounds or has none."""
    lines = []
    for rival, ratio in ratios.items():
        bound, what = bounds.get((name, rival)), f"{name} against {rival}: ratio {ratio:.3g}"
        if bound is None:
            lines.append(f"{what} has no bounds; set them on a quiet machine: make bench-accept-ratios")
        elif ratio < bound.least:
            lines.append(f"{what}, at least {bound.least:.3g} expected: ours has become slower")
        elif ratio > bound.most:
            why = "ours has become faster or the rival slower; if you know why: make bench-accept-ratios"
            lines.append(f"{what}, at most {bound.most:.3g} expected: {why}")
    return lines


def binds(name: str, rival: str, bounds: Bounds) -> bool:
    """Whether a slowdown could break this rival's bound."""
    return (name, rival) in bounds and bounds[name, rival].least > 0


def caught(name: str, ratios: Mapping[str, float], bounds: Bounds) -> list[str]:
    """The rivals whose ratio shows that ours is slower than it should be."""
    known = {rival: ratio for rival, ratio in ratios.items() if (name, rival) in bounds}
    return [rival for rival, ratio in known.items() if ratio < bounds[name, rival].least]


def accepted(runs: Sequence[Mapping[str, Any]]) -> tuple[Bounds, dict[str, Any]]:
    """Bounds, and the medians of all figures, from the files that pytest-benchmark wrote of each process."""
    cpu, day = runs[0]["machine_info"]["cpu"].get("brand_raw", "unknown CPU"), runs[0]["datetime"][:10]
    bounds, contests = {}, []
    for measured in zip(*(run["benchmarks"] for run in runs), strict=True):
        same = [each["extra_info"] for each in measured]
        first, loads = same[0], [value for each in same for value in each["load"]]
        load = [min(loads), max(loads)]
        how = (
            f"{day} at {first['commit'][:9]}, {cpu}, threads {first['threads']}, "
            f"load {load[0]:.1f} to {load[1]:.1f}"
        )
        ratios = {rival: [each["ratios"][rival] for each in same] for rival in first["ratios"]}
        bounds |= {(first["name"], rival): _bound(found, how) for rival, found in ratios.items()}
        medians = {rival: statistics.median(found) for rival, found in ratios.items()}
        seconds = statistics.median(each["seconds"] for each in same)
        contests.append(first | {"seconds": seconds, "ratios": medians, "load": load})
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
        raise SystemExit("bench.timed.bounds: name the files of pytest bench/timed --benchmark-json=FILE")
    bounds, results = accepted([json.loads(file.read_text(encoding="utf-8")) for file in files])
    write_bounds(read_bounds() | bounds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{len(bounds)} bounds written to {TABLE}, the measurements to {RESULTS}")
    print("to show them in docs/performance.md: python -m bench.report")


if __name__ == "__main__":
    main()
