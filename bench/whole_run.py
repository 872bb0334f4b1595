"""A whole guided run on this machine's CPU, ours and the released code's way: `python -m bench.whole_run`.

A random rotary model of middling size in float32, from the clip's latents to the new video's; text encoder
and VAE have no part in it. The rival does the released code's work over diffusers' own layers
(`bench.rivals`). The optimisation part is all but the denoising forwards: reference, injection, and the
updates of the latents.

The sides take turns, a denoising step each, so that what else the machine does falls on all of them. CPU
seconds are for OMP_NUM_THREADS=1 on a busy machine: with more threads their waiting for each other counts.
Each side has a process of its own: its memory is how far the run raises the resident set, weights included,
above what the process held after a tiny run of the same kind (VmHWM in /proc, so Linux only). What malloc
keeps counts, but with MALLOC_MMAP_THRESHOLD_=1048576 freed blocks go back at once. FLOPs are exact, from fake
tensors, with every row of the loss counting.

Fails where a side's latents differ from the rival's by more than 1e-4 of their norm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.correctness import WrongResult
from bench.motion_flow import resident_mib
from bench.subjects import FULL, QUICK, RIVAL, SIDES, WARMUP, Case, operations, runner_of
from bench.tables import whole_run_table
from ditflow.models.cogvideox.text import Texts
from ditflow.models.protocols import Injected, Inputs, Runner
from ditflow.sampling.denoising import Denoising
from ditflow.sampling.loop import Step

MOST_DIFFERENCE = 1e-4
SCHEDULER = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "clip_sample": False,
}


@dataclass(frozen=True)
class Measured:
    """What one side took."""

    optimisation_seconds: float
    whole_seconds: float
    optimisation_cpu_seconds: float
    whole_cpu_seconds: float
    peak_mib: float
    loaded_mib: float  # held before the run, not part of the peak
    latents: np.ndarray


def clock() -> np.ndarray:
    """Seconds: on the wall, and those that this process's threads computed, all together."""
    return np.array([time.perf_counter(), time.process_time()])


class Parted:
    """A Runner whose denoising forwards are timed apart from all else a run does."""

    def __init__(self, runner: Runner):
        self.runner, self.denoising = runner, np.zeros(2)
        self.backbone, self.features, self.gradient = runner.backbone, runner.features, runner.gradient

    def forward(self, several: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        start = clock()
        predictions = self.runner.forward(several, injected)
        self.denoising += clock() - start
        return predictions


class Turns:
    """Lets a run work until the end of a step and then wait for the others; its waiting is not its time."""

    def __init__(self, asked: Connection):
        self.asked, self.waited = asked, np.zeros(2)
        asked.recv()

    def end_step(self, _: Step) -> None:
        start = clock()
        self.asked.send(None)
        self.asked.recv()
        self.waited += clock() - start


def measured(side: str, case: Case, asked: Connection) -> None:
    """One side's run, in a process that did nothing before; says None after a step, `Measured` at the end."""
    turns = Turns(asked)
    run(side, WARMUP, lambda step: None)  # loads what stays loaded
    loaded = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    optimisation, whole, latents = run(side, case, turns.end_step)
    peak = resident_mib("VmHWM") - loaded
    seconds = zip(optimisation - turns.waited, whole - turns.waited, strict=True)
    asked.send(Measured(*map(float, chain(*seconds)), peak, loaded, latents.numpy()))


def run(side: str, case: Case, watch: Callable[[Step], None]) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Seconds (see `clock`) of the optimisation part and of all, and the latents."""
    draw = torch.Generator().manual_seed(1)
    texts = Texts(*(torch.randn(case.prompt, generator=draw) for _ in range(3)))
    clip = torch.randn(case.latents, generator=draw)
    with runner_of(side, case) as runner:
        parted = Parted(runner)
        start = clock()
        denoised = Denoising(case.settings, SCHEDULER, texts, clip, watch).run(parted)
        whole = clock() - start
    return whole - parted.denoising, whole, denoised.latents


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """The norm of the difference, as a share of the second's."""
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def measure(case: Case) -> dict[str, dict]:
    """The numbers of every side.

    Raises WrongResult where its latents are not the rival's.
    """
    found, counted = measured_apart(case), {side: operations(side, case) for side in SIDES}
    sides = {}
    for side, numbers in found.items():
        row = asdict(numbers) | asdict(counted[side])
        row["difference"] = difference(row.pop("latents"), found[RIVAL].latents)
        if not row["difference"] <= MOST_DIFFERENCE:  # NaN too
            raise WrongResult(
                f"{side}: latents differ from the rival's by {row['difference']:.1e} of their norm"
            )
        sides[side] = row
    return sides


def measured_apart(case: Case) -> dict[str, Measured]:
    """Every side in a process of its own, a denoising step in turn."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["bench.rivals"])  # all that takes long to import
    sides = {}
    for side in SIDES:
        sides[side], asked = processes.Pipe()
        processes.Process(target=measured, args=(side, case, asked), daemon=True).start()
        asked.close()  # so that the pipe ends with the process
    found = dict.fromkeys(SIDES)
    while working := [side for side in SIDES if found[side] is None]:
        for side in working:
            sides[side].send(None)
            found[side] = sides[side].recv()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model and few steps: no measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file")
    options = parser.parse_args()
    case = QUICK if options.quick else FULL

    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "load": [os.getloadavg()[0]]}
    print(f"{machine}\n{case}\nin brackets: how many times less than the released way\n", flush=True)
    try:
        sides = measure(case)
    except WrongResult as error:
        raise SystemExit(f"bench.whole_run: {error}") from None
    print(whole_run_table(sides))
    machine["load"].append(os.getloadavg()[0])
    print(f"load at the end {machine['load'][-1]:.2f}")
    if options.json:
        found = {"machine": machine, "case": asdict(case), "sides": sides}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
