"""A whole guided run on this machine's CPU, ours and the released code's way: `python -m bench.whole_run`.

A random rotary model of middling size in float32, from the clip's latents to the new video's; text encoder
and VAE have no part in it. The rival does the released code's work over diffusers' own layers
(`bench.released_way`). The optimisation part is all but the denoising forwards: reference, injection, and the
updates of the latents. The sides take turns, a denoising step each, so that what else the machine does falls
on all of them. Each has a process of its own: its memory is how far the run raises the resident set, weights
included, above what the process held after a tiny run of the same kind (VmHWM in /proc, so Linux only). FLOPs
are counted on fake tensors, with every row of the loss counting.

Fails where a side's latents differ from the rival's by more than 1e-4 of their norm.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from bench.correctness import WrongResult
from bench.motion_flow import resident_mib
from bench.released_way import ReleasedWay
from bench.tables import whole_run_table
from ditflow.backbone.cogvideox import CogVideoX
from ditflow.backbone.fake import fake_tensors
from ditflow.backbone.runner import Grid, Injected, Inputs, Loss, Runner, Until
from ditflow.backbone.text import Texts
from ditflow.denoising import Denoising
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.tracker import Tracker
from ditflow.sampling import Step
from ditflow.settings import Settings, shipped
from ditflow_kernels import motion_flow, motion_flow_loss
from ditflow_kernels.backends import FASTEST

RIVAL = "released way"
SIDES = {  # name: Runner and kernels' backend
    RIVAL: (ReleasedWay, "reference"),
    "plain": (PlainRunner, "chunked"),
    "attention kept": (partial(BlockwiseRunner, keep="attention"), "chunked"),
    "block by block": (BlockwiseRunner, "chunked"),
}
MOST_DIFFERENCE = 1e-4
SHAPE = {"num_attention_heads": 8, "attention_head_dim": 64, "time_embed_dim": 128, "text_embed_dim": 64}
CHANNELS, TEXT_TOKENS = 16, 226
SCHEDULER = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "clip_sample": False,
}


@dataclass(frozen=True)
class Case:
    """A run to measure."""

    layers: int
    guidance_block: int
    grid: Grid
    steps: int
    optimisation_steps: int

    @property
    def settings(self) -> Settings:
        return Settings(
            model="5b",
            dtype="float32",
            device="cpu",
            steps=self.steps,
            optimisation_steps=self.optimisation_steps,
            guidance_blocks=(self.guidance_block,),
            injection_blocks=(0,),
        )

    @property
    def latents(self) -> tuple[int, ...]:
        """[1, frames, channels, height, width]"""
        return 1, self.grid.frames, CHANNELS, 2 * self.grid.height, 2 * self.grid.width

    @property
    def prompt(self) -> tuple[int, ...]:
        """[1, text tokens, text channels]"""
        return 1, TEXT_TOKENS, SHAPE["text_embed_dim"]

    def backbone(self) -> CogVideoX:
        """The same random weights each time."""
        torch.manual_seed(0)
        shape = shipped("models/5b.yaml")["transformer"] | SHAPE
        return CogVideoX(CogVideoXTransformer3DModel(**shape | {"num_layers": self.layers}))


FULL = Case(layers=12, guidance_block=6, grid=Grid(6, 15, 22), steps=20, optimisation_steps=5)
QUICK = Case(layers=4, guidance_block=2, grid=Grid(2, 6, 8), steps=2, optimisation_steps=2)
WARMUP = Case(layers=2, guidance_block=1, grid=Grid(2, 2, 3), steps=2, optimisation_steps=1)


@dataclass(frozen=True)
class Measured:
    """What one side took."""

    optimisation_seconds: float
    whole_seconds: float
    peak_mib: float
    loaded_mib: float  # held before the run, not part of the peak
    latents: np.ndarray


@dataclass(frozen=True)
class Operations:
    """What one side computes."""

    optimisation_flops: int
    whole_flops: int


class Parted:
    """A Runner whose denoising forwards are timed apart from all else a run does."""

    def __init__(self, runner: Runner):
        self.runner, self.denoising = runner, 0.0
        self.backbone, self.features, self.gradient = runner.backbone, runner.features, runner.gradient

    def forward(self, several: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        start = time.perf_counter()
        predictions = self.runner.forward(several, injected)
        self.denoising += time.perf_counter() - start
        return predictions


@contextmanager
def runner_of(side: str, case: Case) -> Iterator[Runner]:
    """A side's Runner, and while it computes its kernels."""
    kind, backend = SIDES[side]
    with patch.dict(FASTEST, cpu=backend):
        yield kind(case.backbone())


class Turns:
    """Lets a run work until the end of a step and then wait for the others; its waiting is not its time."""

    def __init__(self, asked: Connection):
        self.asked, self.waited = asked, 0.0
        asked.recv()

    def end_step(self, _: Step) -> None:
        start = time.perf_counter()
        self.asked.send(None)
        self.asked.recv()
        self.waited += time.perf_counter() - start


def measured(side: str, case: Case, asked: Connection) -> None:
    """One side's run, in a process that did nothing before; says None after a step, `Measured` at the end."""
    turns = Turns(asked)
    run(side, WARMUP, lambda step: None)  # loads what stays loaded
    loaded = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    optimisation, whole, latents = run(side, case, turns.end_step)
    peak = resident_mib("VmHWM") - loaded
    asked.send(Measured(optimisation - turns.waited, whole - turns.waited, peak, loaded, latents.numpy()))


def run(side: str, case: Case, watch: Callable[[Step], None]) -> tuple[float, float, Tensor]:
    """Seconds of the optimisation part, seconds of all, and the latents."""
    draw = torch.Generator().manual_seed(1)
    texts = Texts(*(torch.randn(case.prompt, generator=draw) for _ in range(3)))
    clip = torch.randn(case.latents, generator=draw)
    with runner_of(side, case) as runner:
        parted = Parted(runner)
        start = time.perf_counter()
        denoised = Denoising(case.settings, SCHEDULER, texts, clip, watch).run(parted)
        whole = time.perf_counter() - start
    return whole - parted.denoising, whole, denoised.latents


def operations(side: str, case: Case) -> Operations:
    """The FLOPs of one pass of each kind, times how often a run makes it."""
    settings = case.settings
    target = Until("query_key", settings.guidance_blocks)
    with fake_tensors(), runner_of(side, case) as runner:
        inputs = Inputs(
            latents=torch.empty(case.latents),
            prompt=torch.empty(case.prompt),
            timestep=torch.empty(1, dtype=torch.int64),
            embedding=torch.empty(2, 2, math.prod(case.grid), SHAPE["attention_head_dim"]),
        )
        reference = flops(lambda: FlowLoss(runner.features(inputs, {}, target), case.grid, settings))
        injection = flops(lambda: runner.features(inputs, {}, Until("key_value", settings.injection_blocks)))
        update = flops(lambda: runner.gradient(loss_of(side, case), "latents", inputs, {}, target, 1.0))
        denoising = flops(lambda: runner.forward([inputs, inputs], {}))
    optimisation = reference + settings.guided_steps * (injection + settings.optimisation_steps * update)
    return Operations(optimisation, optimisation + settings.steps * denoising)


def loss_of(side: str, case: Case) -> Loss:
    """The flow loss, every row counting: the rival's own asks which rows do, and fake tensors cannot say."""
    frames, *_ = grid = case.grid
    target = torch.empty(frames, frames, grid.height * grid.width, 2)
    temperature = case.settings.temperature
    if side == RIVAL:
        return lambda _, read: (motion_flow(*read, grid, temperature) - target).square().mean()
    return lambda _, read: motion_flow_loss(*read, target, grid, temperature)


def flops(work: Callable[[], object]) -> int:
    with Tracker() as found:
        work()
    return found.flops


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
    processes.set_forkserver_preload(["bench.released_way"])  # all that takes long to import
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
