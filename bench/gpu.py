"""Checks every kernel on this GPU, then measures: `python -m bench.gpu [--minutes 9]`.

Every operation is first compared with its definition in float64; wrong results end the run. Then whole steps
of CogVideoX 5B and 2B and of Wan 1.3B with random weights are measured (`bench.steps`), and the passes, ours
and the rivals', beside the device's best copy and product. A row without numbers says why. Prints tables and
writes bench/results/<device>.json after every measurement, for `python -m bench.report`.

Times of passes are medians of CUDA events, warm, with several input sets in turn and calls queued ahead of
the device. Times of steps are wall time.
"""

import argparse
import gc
import json
import re
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.correctness import WrongResult, check_all
from bench.harness import Ceilings, CudaMeter, Deadline, commit, measure_ceilings
from bench.linear_passes import linear_passes
from bench.passes import SIZES, Pass, Rival, Size, passes
from bench.steps import BROKEN, Machine, Models, StepRow, at_each_speed, first_line, measure_steps, variants
from bench.subjects import shipped_config
from bench.tables import TERA, gib, pass_tables, step_tables

RESULTS = Path(__file__).with_name("results")
MINUTES = 9.0
LAST = 20  # seconds kept for the last pass and the tables
INPUT_SETS = 3
OLDEST = {"torch": (2, 11), "triton": (3, 6)}


@dataclass(frozen=True)
class Row:
    """A rival in a pass at a size; `reason` says why there are no numbers."""

    of: str
    size: str
    rival: str
    milliseconds: float | None = None
    peak_bytes: int | None = None  # beyond inputs and results
    least_milliseconds: float | None = None  # at the device's ceiling
    reason: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all of it")
    options = parser.parse_args(arguments)
    if (reason := why_it_cannot_run()) is not None:
        raise SystemExit(f"bench.gpu: {reason}")
    deadline = Deadline(60 * options.minutes - LAST)
    meter = CudaMeter(torch.device("cuda", torch.cuda.current_device()))
    torch.cuda.set_device(meter.device)
    try:
        print(f"correct: {check_all(meter.device, 'triton')} comparisons with float64")
    except WrongResult as wrong:
        raise SystemExit(f"bench.gpu: wrong results, nothing is measured: {wrong}") from None

    results = Results(ceilings := measure_ceilings(meter))
    for row in measurements(Machine(meter, deadline, ceilings)):
        results.add(row)
    copied, product, in_int8 = (rate / TERA for rate in ceilings)
    print(f"copies {copied:.2f} TB/s, products {product:.0f} TFLOP/s, in int8 {in_int8:.0f}")
    print("", pass_tables(found := [asdict(row) for row in results.passes]), sep="\n")
    print("", step_tables([asdict(step) for step in results.steps], found), "", sep="\n")
    print(f"written to {results.path}")
    if results.broken:
        raise SystemExit("bench.gpu: something of ours is broken, see the reasons above")


def why_it_cannot_run() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device, found none"
    try:
        import triton
    except ImportError:
        return "needs triton, which is not installed"
    for module in (torch, triton):
        version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
        if version < (oldest := OLDEST[module.__name__]):
            return f"needs {module.__name__} {'.'.join(map(str, oldest))}, {module.__version__} is installed"
    return None


def measurements(machine: Machine) -> Iterator[Row | StepRow]:
    """All measurements, the most valuable first: time may not suffice for the last."""
    models = Models(machine.meter, shipped_config)
    first, second, *others = (variants(model, frames) for model in ("5b", "2b") for frames in (24, 49))
    yield from measure_steps(machine, first[0], models)  # at each speed
    yield from measure_passes(machine, SIZES[:2], compiled=False)
    yield from measure_steps(machine, at_each_speed("wan-1.3b", 49), models)
    yield from measure_steps(machine, [*second[0], *first[1], *(plain[0] for plain, _ in others)], models)
    yield from measure_passes(machine, SIZES[2:], compiled=False)
    yield from measure_passes(machine, SIZES, compiled=True)
    rest = [*second[1], *(each for plain, changed in others for each in (*plain[1:], *changed))]
    yield from measure_steps(machine, rest, models)


def all_passes() -> list[Pass]:
    return [*passes(), *linear_passes()]


def measure_passes(
    machine: Machine,
    sizes: Sequence[Size],
    compiled: bool,  # the rivals by torch.compile, or the others
    skip: Collection[str] = (),
) -> Iterator[Row]:
    for size in sizes:
        for each in all_passes():
            sets = [each.inputs(size, machine.meter.device, seed) for seed in range(INPUT_SETS)]
            for rival in each.rivals():
                if rival.compiles == compiled and rival.name not in skip:
                    yield measure_pass(machine, each, size, rival, sets)
            del sets
            torch._dynamo.reset()
            gc.collect()


def measure_pass(machine: Machine, each: Pass, size: Size, rival: Rival, sets: list[tuple]) -> Row:
    names, meter = (each.name, size.name, rival.name), machine.meter
    if (needed := rival.needed_bytes(size)) > (free := meter.free_bytes()):
        return Row(*names, reason=f"needs {gib(needed)} GiB, {gib(free)} are free")
    if machine.deadline.left < (60 if rival.compiles else 0):
        return Row(*names, reason="no time left")
    calls = [lambda given=given: rival.call(*given) for given in sets]
    try:
        milliseconds, peak_bytes = meter.milliseconds(calls), meter.peak_bytes(calls[0])
    except torch.cuda.OutOfMemoryError:
        return Row(*names, reason="out of memory")
    except Exception as error:
        if rival.compiles:  # then it takes no part
            return Row(*names, reason=f"does not compile: {first_line(error)}")
        traceback.print_exc()
        return Row(*names, reason=f"{BROKEN}: {first_line(error)}")
    return Row(*names, milliseconds, peak_bytes, least_milliseconds(each, size, machine.ceilings))


def least_milliseconds(each: Pass, size: Size, ceilings: Ceilings) -> float:
    if each.flops is not None:
        return 1e3 * each.flops(size) / ceilings.product_flops
    if each.int8_flops is not None:
        return 1e3 * each.int8_flops(size) / ceilings.int8_product_flops
    return 1e3 * each.bytes(size) / ceilings.copied_bytes


@dataclass
class Results:
    """What has been measured so far, written to the file after every row."""

    ceilings: Ceilings
    passes: list[Row] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)

    def __post_init__(self):
        import triton

        name = torch.cuda.get_device_name()
        self.path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        self.about: dict[str, Any] = {
            "kind": "gpu",
            "device": name,
            "date": str(date.today()),
            "capability": list(torch.cuda.get_device_capability()),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "commit": commit(),
            "ceilings": self.ceilings._asdict(),
        }

    def add(self, row: Row | StepRow) -> None:
        (self.steps if isinstance(row, StepRow) else self.passes).append(row)
        rows = {"passes": [asdict(row) for row in self.passes], "steps": [asdict(row) for row in self.steps]}
        RESULTS.mkdir(exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.about | rows, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)

    @property
    def broken(self) -> bool:
        """Whether something of ours failed."""
        return any((row.reason or "").startswith(BROKEN) for row in (*self.passes, *self.steps))


if __name__ == "__main__":
    main()
