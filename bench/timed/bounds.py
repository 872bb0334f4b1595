"""The bounds of every ratio, `bench/ratios.csv`; `python -m bench.timed.bounds FILE` sets them.

FILE is what pytest-benchmark wrote (`make bench-accept-ratios`). A bound lies half-way, as a factor, between
what was measured and a slowdown of 1.5: as far from failing by chance as from missing it. The measurements
themselves go to bench/results/cpu.json, for docs/performance.md.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.timed.contest import SLOWDOWN

BENCH = Path(__file__).parents[1]
TABLE = BENCH / "ratios.csv"
RESULTS = BENCH / "results" / "cpu.json"
WIDTH = SLOWDOWN**0.5


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


def caught(name: str, ratios: Mapping[str, float], bounds: Bounds) -> list[str]:
    """The rivals that show ours to be slower than it should be."""
    return [
        rival
        for rival, ratio in ratios.items()
        if (name, rival) in bounds and ratio < bounds[name, rival].least
    ]


def accepted(measured: Mapping[str, Any]) -> tuple[Bounds, dict[str, Any]]:
    """Bounds and results from what pytest-benchmark wrote."""
    cpu, day = measured["machine_info"]["cpu"].get("brand_raw", "unknown CPU"), measured["datetime"][:10]
    bounds, contests = {}, []
    for each in measured["benchmarks"]:
        found = each["extra_info"]
        how = (
            f"{day} at {found['commit'][:9]}, {cpu}, {found['threads']} threads, "
            f"load {found['load'][0]:.1f} to {found['load'][1]:.1f}: measured "
        )
        for rival, ratio in found["ratios"].items():
            bounds[found["name"], rival] = Bound(ratio / WIDTH, ratio * WIDTH, f"{how}{ratio:.3g}")
        contests.append(found)
    return bounds, {"kind": "cpu", "device": cpu, "date": day, "contests": contests}


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit("bench.timed.bounds: one file from pytest-benchmark (--benchmark-json) is needed")
    measured = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    bounds, results = accepted(measured)
    write_bounds(read_bounds() | bounds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{len(bounds)} bounds written to {TABLE}, what was measured to {RESULTS}")
    print("docs/performance.md shows it after: python -m bench.report")


if __name__ == "__main__":
    main()
