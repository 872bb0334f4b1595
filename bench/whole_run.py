"""A whole guided run on a CPU, ours and the released code's way: `python -m bench.whole_run`.

A random rotary model of middling size in float32, from the clip's latents to the new video's. The
optimisation part is everything but the denoising forwards: reference, injection and updates of the latents.

Every side runs in a process of its own, one after the other. On a busy machine read CPU seconds, with
OMP_NUM_THREADS=1, as threads wait for each other. Memory is what the run adds to the resident set at its
peak, weights included, after a tiny run has loaded the rest (Linux only). It counts what malloc keeps; with
MALLOC_MMAP_THRESHOLD_=1048576 freed blocks go back at once. FLOPs are exact, from fake tensors, with every
row of the loss counted. Fails if a side's latents differ from the rival's by more than 1e-4 of their norm.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.correctness import WrongResult
from bench.harness import in_fresh_processes, resident_peak
from bench.rivals import RIVAL, SIDES, WITH_OUR_LOSS, runner_of
from bench.subjects import FULL, QUICK, WARMUP, Case
from bench.tables import whole_run_table
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Injected, Inputs, Loss, Runner, Until
from ditflow.planning.fake import fake_tensors
from ditflow_kernels import motion_flow, motion_flow_loss

MOST_DIFFERENCE = 1e-4
RUNS = tuple(side for side in SIDES if side != WITH_OUR_LOSS)


def clock() -> np.ndarray:
    """Seconds: wall time, and CPU time of all threads of this process."""
    return np.array([time.perf_counter(), time.process_time()])


class Parted:
    """A Runner that times its denoising forwards apart from everything else."""

    def __init__(self, runner: Runner):
        self.runner, self.denoising = runner, np.zeros(2)
        self.backbone, self.features, self.gradient = runner.backbone, runner.features, runner.gradient

    def forward(self, several: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        start = clock()
        predictions = self.runner.forward(several, injected)
        self.denoising += clock() - start
        return predictions


def run(side: str, case: Case) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Seconds (see `clock`) of the optimisation part and of everything, and the latents."""
    whole_run = case.run()
    with runner_of(side, case) as runner:
        parted, start = Parted(runner), clock()
        denoised = whole_run(parted)
        whole = clock() - start
    return whole - parted.denoising, whole, denoised.latents


def measured(given: tuple[str, Case]) -> dict[str, Any]:
    """One side's run, for a fresh process."""
    side, case = given
    run(side, WARMUP)  # loads what stays loaded
    (optimisation, whole, latents), loaded, peak = resident_peak(lambda: run(side, case))
    return {
        "optimisation_seconds": float(optimisation[0]),
        "whole_seconds": float(whole[0]),
        "optimisation_cpu_seconds": float(optimisation[1]),
        "whole_cpu_seconds": float(whole[1]),
        "peak_mib": peak,
        "loaded_mib": loaded,
        "latents": latents.numpy(),
    }


def measure(case: Case) -> dict[str, dict[str, Any]]:
    """The numbers of every side. Raises WrongResult if its latents are not the rival's."""
    found = in_fresh_processes(measured, [(side, case) for side in RUNS])
    sides = dict(zip(RUNS, found, strict=True))
    latents = {side: row.pop("latents") for side, row in sides.items()}
    for side, row in sides.items():
        row |= operations(side, case) | {"difference": difference(latents[side], latents[RIVAL])}
        if not row["difference"] <= MOST_DIFFERENCE:  # NaN too
            share = f"{row['difference']:.1e}"
            raise WrongResult(f"{side}: latents differ from the rival's by {share} of their norm")
    return sides


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """The norm of the difference, as a share of the second's."""
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def operations(side: str, case: Case) -> dict[str, int]:
    """FLOPs of the optimisation part and of the whole run: each pass, times how often a run makes it."""
    settings = case.settings
    flow, keys = Until("query_key", settings.guidance_blocks), Until("key_value", settings.injection_blocks)
    with fake_tensors(), runner_of(side, case) as runner:
        inputs, _ = case.inputs()
        reference = flops(lambda: FlowLoss(runner.features(inputs, {}, flow), case.grid, settings))
        injection = flops(lambda: runner.features(inputs, {}, keys))
        update = flops(lambda: runner.gradient(loss_of(side, case), "latents", inputs, {}, flow, 1.0))
        denoising = flops(lambda: runner.forward([inputs, inputs], {}))
    optimisation = reference + settings.guided_steps * (injection + settings.optimisation_steps * update)
    return {"optimisation_flops": optimisation, "whole_flops": optimisation + settings.steps * denoising}


def loss_of(side: str, case: Case) -> Loss:
    """The flow loss with all rows: fake tensors cannot tell which rows move."""
    frames, height, width = grid = case.grid
    target, temperature = torch.empty(frames, frames, height * width, 2), case.settings.temperature
    if side == RIVAL:
        return lambda _, read: (motion_flow(*read, grid, temperature) - target).square().mean()
    return lambda _, read: motion_flow_loss(*read, target, grid, temperature)


def flops(work: Callable[[], object]) -> int:
    with Tracker() as found:
        work()
    return found.flops


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
    machine["load"].append(os.getloadavg()[0])
    print(f"{whole_run_table(sides)}\n\nload at the end {machine['load'][-1]:.2f}")
    if options.json:
        found = {"machine": machine, "case": asdict(case), "sides": sides}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
