"""Is every kernel right on this GPU, and how fast is it: `python -m bench.gpu [--minutes 9]`.

First every operation is compared with its definition in float64; wrong results end the run. Then whole
steps of CogVideoX 5B and 2B with random weights are measured (`bench.steps`), and the passes, ours and the
rivals', beside what the device copies and multiplies at best. What there is no time or no memory for is
named, and so is what fails: the rest goes on. Prints tables and writes bench/results/<device>.json, anew
after every measurement, which `python -m bench.report` shows.

Times of passes are medians of CUDA events, warm, over input sets that take turns; calls are queued ahead of
the device. Times of steps are on the wall.
"""

import argparse
import gc
import json
import re
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.correctness import WrongResult, check_all
from bench.harness import GIB, Ceilings, CudaMeter, Deadline, Meter, measure_ceilings
from bench.passes import SIZES, Pass, Rival, Size, passes
from bench.revision import commit
from bench.steps import BROKEN, Models, StepRow, first_line, measure_steps, shipped_config, variants
from bench.tables import pass_tables, step_tables

RESULTS = Path(__file__).with_name("results")
MINUTES = 9.0
LAST = 20  # seconds that the last pass and the tables may take when the time is over
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
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the time there is for all of it")
    options = parser.parse_args(arguments)
    if (reason := why_it_cannot_run()) is not None:
        raise SystemExit(f"bench.gpu: {reason}")
    deadline = Deadline(60 * options.minutes - LAST)
    meter = CudaMeter(torch.device("cuda", torch.cuda.current_device()))
    torch.cuda.set_device(meter.device)
    try:
        print(f"right: {check_all(meter.device, 'triton')} comparisons with float64")
    except WrongResult as wrong:
        raise SystemExit(f"bench.gpu: wrong, so nothing is measured: {wrong}") from None

    results = Results(ceilings := measure_ceilings(meter))
    for row in measurements(meter, deadline, ceilings):
        results.add(row)
    copied, product = ceilings.copied_bytes / 1e12, ceilings.product_flops / 1e12
    print(f"copies {copied:.2f} TB/s, multiplies {product:.0f} TFLOP/s")
    print(pass_tables(passes := [asdict(row) for row in results.passes]))
    print(step_tables([asdict(step) for step in results.steps], passes))
    print(f"written to {results.path}")
    if results.broken:
        raise SystemExit("bench.gpu: something of ours is broken, see the reasons above")


def why_it_cannot_run() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device, and there is none"
    try:
        import triton
    except ImportError:
        return "needs triton, which is not installed"
    for module in (torch, triton):
        version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
        if version < (oldest := OLDEST[module.__name__]):
            return f"needs {module.__name__} {'.'.join(map(str, oldest))}, {module.__version__} is installed"
    return None


def measurements(meter: Meter, deadline: Deadline, ceilings: Ceilings) -> Iterator[Row | StepRow]:
    """Everything there is to measure; what is worth least comes last, when there may be no time for it."""
    models = Models(meter.device, meter.free_bytes, shipped_config)
    passes_of = partial(measure_all, meter, deadline, ceilings)
    steps_of = partial(measure_steps, meter, deadline, ceilings, models=models)
    first, second, *others = (variants(model, frames) for model in ("5b", "2b") for frames in (24, 49))
    yield from steps_of(first[0])
    yield from passes_of(SIZES[:2], compiled=False)
    yield from steps_of(second[0])
    yield from steps_of(first[1])
    yield from steps_of(each[0][0] for each in others)
    yield from passes_of(SIZES[2:], compiled=False)
    yield from passes_of(SIZES, compiled=True)
    yield from steps_of(second[1])
    for plain, changed in others:
        yield from steps_of([*plain[1:], *changed])


def measure_all(
    meter: Meter,
    deadline: Deadline,
    ceilings: Ceilings,
    sizes: Sequence[Size],
    compiled: bool,  # the rivals that torch.compile makes, or the others
    skip: Collection[str] = (),
) -> Iterator[Row]:
    for size in sizes:
        for each in passes():
            sets = [each.inputs(size, meter.device, seed) for seed in range(INPUT_SETS)]
            for rival in each.rivals():
                if rival.compiles == compiled and rival.name not in skip:
                    yield measure(meter, deadline, ceilings, each, size, rival, sets)
            del sets
            torch._dynamo.reset()
            gc.collect()


def measure(
    meter: Meter,
    deadline: Deadline,
    ceilings: Ceilings,
    each: Pass,
    size: Size,
    rival: Rival,
    sets: list[tuple],
) -> Row:
    names = each.name, size.name, rival.name
    if (needed := rival.needed_bytes(size)) > (free := meter.free_bytes()):
        return Row(*names, reason=f"needs {needed / GIB:.0f} GiB, {free / GIB:.0f} are free")
    if deadline.left < (60 if rival.compiles else 0):
        return Row(*names, reason="no time left")
    calls = [lambda given=given: rival.call(*given) for given in sets]
    try:
        milliseconds, peak_bytes = meter.milliseconds(calls), meter.peak_bytes(calls[0])
    except torch.cuda.OutOfMemoryError:
        return Row(*names, reason="out of memory")
    except Exception as error:
        if not rival.compiles:
            traceback.print_exc()
        # what cannot be compiled competes with nobody
        return Row(*names, reason=f"{'does not compile' if rival.compiles else BROKEN}: {first_line(error)}")
    return Row(*names, milliseconds, peak_bytes, least_milliseconds(each, size, ceilings))


def least_milliseconds(each: Pass, size: Size, ceilings: Ceilings) -> float:
    if each.flops is not None:
        return 1e3 * each.flops(size) / ceilings.product_flops
    return 1e3 * each.bytes(size) / ceilings.copied_bytes


@dataclass
class Results:
    """What has been measured so far; on file after every row, however the run ends."""

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
