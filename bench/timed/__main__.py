"""Times every contest and checks the ratios: `python -m bench.timed [--only WORDS] [--expect ...]`."""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.harness import CPU, Call, commit, steady
from bench.tables import ratio_table
from bench.timed.bounds import SLOWDOWN, Bounds, binds, broken, caught, read_bounds
from bench.timed.contests import Contest, contests, play
from ditflow.errors import DitflowError
from ditflow.models.compiling import compiles

EXPECT = {  # choice: what fails
    "bounds": "ratios outside bench/ratios.csv",
    "slowdown": "contests in which a planted slowdown breaks no bound",
    "nothing": "none, only measure",
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("bench.timed", description=__doc__.split(":")[0])
    fails = "; ".join(f"{name}: {what}" for name, what in EXPECT.items())
    parser.add_argument(
        "--expect", choices=EXPECT, default="bounds", help=f"which of these fail the command ({fails})"
    )
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="contests with these words in their names"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements to a file")
    options = parser.parse_args(words)
    if not (chosen := [contest for contest in contests() if options.only in contest.name]):
        parser.error(f"--only {options.only}: contests are {', '.join(each.name for each in contests())}")

    steady()
    bounds, found, faults = read_bounds(), [], []
    for contest in chosen:
        print(contest.name, file=sys.stderr, flush=True)
        found.append(measured(contest, bounds, options.expect == "slowdown"))
        faults += faults_of(found[-1], bounds, options.expect)
    print(ratio_table(found, bounds))
    if options.json:
        results = {"kind": "cpu", "device": cpu_name(), "date": str(date.today()), "contests": found}
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if faults:
        raise SystemExit("\n".join(["bench.timed:", *faults]))


def measured(contest: Contest, bounds: Bounds, planted: bool) -> dict[str, Any]:
    load = os.getloadavg()[0]
    sides = {name: make() for name, make in contest.sides().items()}
    # compiling takes long, and the control needs only one rival whose bound can break
    if not (planted and any(binds(contest.name, rival, bounds) for rival in sides)) and can_compile():
        sides |= compiled(contest)
    seconds, ratios = play(sides, planted)
    torch._dynamo.reset()
    return {
        "name": contest.name,
        "size": contest.size,
        "seconds": seconds,
        "ratios": ratios,
        "load": [load, os.getloadavg()[0]],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def faults_of(row: dict[str, Any], bounds: Bounds, expect: str) -> list[str]:
    name, ratios = row["name"], row["ratios"]
    if expect == "bounds":
        return broken(name, ratios, bounds)
    if expect == "slowdown" and not caught(name, ratios, bounds):
        return [f"{name}: ours did {SLOWDOWN} times its work and broke no bound; ratios {ratios}"]
    return []


def compiled(contest: Contest) -> dict[str, Call]:
    """The rivals by torch.compile. One that does not compile takes no part."""
    made = {}
    for name, make in contest.compiled().items():
        try:
            made[name] = make()
            made[name]()
        except Exception as error:
            made.pop(name, None)
            print(f"{contest.name}: {name} does not compile: {error}", file=sys.stderr)
    return made


def can_compile() -> bool:
    try:
        return compiles("on", CPU)
    except DitflowError:
        return False


def cpu_name() -> str:
    known = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", known.read_text(encoding="utf-8") if known.exists() else "")
    return found[1] if found else platform.processor() or "unknown CPU"


if __name__ == "__main__":
    main()
