"""Time, CPU time and peak memory of whole runs and of motion flow at full size: `python -m bench.timed.full`.

The whole run goes from the clip's latents to the new video's, with a random rotary model of middling size in
float32. The optimisation is everything in it but the denoising forwards. "each --speed" is our whole run at
each speed. Motion flow has CogVideoX-5B's heads and three latent frames of 480x720. The numbers go to LOG.md
by hand.

Each side has a process of its own, one after the other: on a busy machine read CPU seconds, with
OMP_NUM_THREADS=1, as threads wait for each other. Memory is what is added to the resident set at the peak
(Linux only), after a first call, of a tiny run for whole runs, has loaded what stays loaded. It includes the
weights but not motion flow's inputs. malloc returns freed blocks at once, unless MALLOC_MMAP_THRESHOLD_ says
otherwise.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from bench.harness import Call, in_fresh_processes, resident_peak
from bench.passes import SIZES, passes
from bench.rivals import SIDES, WITH_OUR_LOSS
from bench.subjects import FULL, QUICK, WARMUP, Case
from bench.tables import full_table
from bench.timed.contests import Sides, optimisation, passed, whole_run
from ditflow.memory.plain import PlainRunner
from ditflow.settings.speed import SPEEDS

SIZE = next(size for size in SIZES if size.name == "5B, 9 frames")
RUNS = tuple(side for side in SIDES if side != WITH_OUR_LOSS)
FLOW = ("flow forward", "loss and gradients")
ROUNDS = 5  # of motion flow

Row = tuple[float, float, float]  # seconds, CPU seconds, MiB


def works(case: Case) -> dict[str, Callable[[], Sides]]:
    of_flow = {
        each.name: partial(passed, each, SIZE, False, slow=True) for each in passes() if each.name in FLOW
    }
    runs = {"optimisation": optimisation, "whole run": whole_run}
    own = {"each --speed": partial(at_each_speed, case)}
    return of_flow | {name: partial(sides, case, RUNS) for name, sides in runs.items()} | own


def at_each_speed(case: Case) -> Sides:
    """Our whole run."""

    def made(case: Case) -> Call:
        return partial(case.run(), PlainRunner(case.transformer()))

    return {speed: partial(made, replace(case, speed=speed)) for speed in SPEEDS}


def measured(given: tuple[str, str, Case]) -> Row:
    """One side, in a fresh process."""
    name, side, case = given
    works(WARMUP)[name]()[side]()()  # loads what stays loaded
    make, taken = works(case)[name]()[side], []

    def run() -> None:
        call = make()
        for _ in range(ROUNDS if name in FLOW else 1):
            start = time.perf_counter(), time.process_time()
            call()
            taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))

    peak = resident_peak(run)
    return *map(statistics.median, zip(*taken, strict=True)), peak


def measure(case: Case, words: str) -> dict[str, dict[str, Row]]:
    """The rows of each side, of each work with these words in its name."""
    found = {}
    for name, sides in works(WARMUP).items():
        if words in name:
            names = sorted(sides(), key=lambda side: side not in ("reference", "exact"))  # it comes first
            rows = in_fresh_processes(measured, [(name, side, case) for side in names])
            found[name] = dict(zip(names, rows, strict=True))
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORDS", help=f"one of {', '.join(works(QUICK))}")
    parser.add_argument("--quick", action="store_true", help="small whole runs: no measurement")
    options = parser.parse_args(words)
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    case = QUICK if options.quick else FULL
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}")
    print(f"{case}\nin brackets: how many times less than the first side\n", flush=True)
    print(full_table(measure(case, options.only)))
    print(f"\nload at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
