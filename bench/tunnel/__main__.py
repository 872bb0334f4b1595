"""Says what approximations do to motion: `python -m bench.tunnel MODE... [--pairs N] [--stage STAGE]`."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.harness import commit
from bench.tables import COMPARED, tunnel_tables
from bench.tunnel.modes import NAMED, Mode, changed, read_mode
from bench.tunnel.stages import CONTROL, EXACT, STAGES, Found, Stage
from bench.tunnel.verdict import MARGINS, verdict
from ditflow.errors import DitflowError
from ditflow.evaluation.intervals import interval
from ditflow.progress import quieten_libraries

SEED = 41  # of pairs on which nothing was designed or chosen


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tunnel", description=__doc__.splitlines()[0])
    told = f"{', '.join(NAMED)}, KEY=VALUE[,KEY=VALUE], or some of these joined by + (default: the stage's)"
    parser.add_argument("modes", nargs="*", metavar="MODE", help=told)
    parser.add_argument("--pairs", type=int, metavar="N", help="clips, each with a prompt (default: enough)")
    parser.add_argument("--stage", choices=STAGES, help="default: all, the cheapest first")
    parser.add_argument("--seed", type=int, default=SEED, metavar="S")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(words)
    if options.pairs is not None and options.pairs < 1:
        parser.error("--pairs from 1")
    if options.seed < 0:
        parser.error("--seed from 0")
    stages = [options.stage] if options.stage else list(STAGES)
    try:
        asked = {name: [read_mode(word) for word in options.modes or STAGES[name].modes] for name in stages}
        for name, modes in asked.items():
            check(STAGES[name], modes)
    except DitflowError as error:
        parser.error(str(error))

    quieten_libraries()
    torch.set_num_threads(1)  # the models are tiny, and another number reorders sums
    found = []
    for name, modes in asked.items():
        found += run(name, modes, options.pairs or STAGES[name].pairs, options.seed)
        if not options.json:
            print(tunnel_tables(found[-len(STAGES[name].variants) :]), flush=True)
    if options.json:
        head = {"kind": "tunnel", "date": str(date.today()), "commit": commit()}
        head |= {"torch": torch.__version__, "seed": options.seed}
        print(json.dumps(head | {"tables": found}, indent=2))


def check(stage: Stage, modes: Sequence[Mode]) -> None:
    """Raises DitflowError for modes that the stage's settings do not allow or that are given twice."""
    names = [EXACT, CONTROL, *(mode.name for mode in modes)]
    for mode in modes:
        if names.count(mode.name) > 1:
            raise DitflowError(f"mode {mode.name} is given twice: name it once")
        for variant in stage.variants:
            mode.apply(stage.base(variant))


def run(name: str, modes: Sequence[Mode], pairs: int, seed: int) -> list[dict[str, Any]]:
    """A table for each variant of a stage."""
    stage, tables = STAGES[name], []
    for variant in stage.variants:
        settings = stage.base(variant)
        found = []
        for index in range(pairs):
            with tempfile.TemporaryDirectory() as scratch:
                pair = stage.draw(seed, index, settings.frames)
                found.append(stage.measure(pair, settings, modes, Path(scratch)))
        changes = {mode.name: changed(settings, mode) for mode in modes}
        head = {"stage": name, "about": stage.about, "variant": variant}
        head["settings"] = {**stage.settings, **stage.variants[variant]}
        tables.append(head | summary(found, changes, stage.judged))
    return tables


def summary(
    found: Sequence[Found], changes: dict[str, dict[str, Any]], judged: bool = True
) -> dict[str, Any]:
    """Intervals over pairs: of exact itself, and of each mode's differences from exact, which are paired."""
    rows = []
    for mode in found[0]:
        own = [numbers[mode] for numbers in found]
        row = {"mode": mode, "changes": changes.get(mode, {}), "pairs": own}
        if mode != EXACT:
            own = [paired(numbers[mode], numbers[EXACT]) for numbers in found]
        row["numbers"] = {name: interval([each[name] for each in own]) for name in own[0]}
        if mode != EXACT and judged:
            row["worst"] = min(each["path_fidelity"] for each in own)
            row["verdict"] = verdict({name: row["numbers"][name] for name in MARGINS})
        row["numbers"] = {name: asdict(value) for name, value in row["numbers"].items()}
        rows.append(row)
    return {"count": len(found), "modes": rows}


def paired(numbers: dict[str, float], exact: dict[str, float]) -> dict[str, float]:
    """The differences of a pair; numbers that compare with exact already stay."""
    return {name: value - (0 if name in COMPARED else exact[name]) for name, value in numbers.items()}


if __name__ == "__main__":
    main()
