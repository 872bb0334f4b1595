"""The contests: what is timed, at which size, and which sides take part.

Operations are the kernels' passes; ours is plain PyTorch by panels, as a CPU uses it. Pieces are those of a
run: a random rotary model of 8 heads x 64 in float32, and the small model's autoencoder.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import subjects
from bench.harness import CPU, Call, Clock, seconds
from bench.passes import SIZES, Pass, Size, passes
from bench.rivals import PLAIN, RIVAL, SIDES, in_a_batch, plain_decoding, plain_encoding, prepared
from bench.subjects import QUICK, Case
from bench.timed.bounds import CALLS, PLANTED
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import flow_targets
from ditflow.models.protocols import Capture, Grid, Injected, Inputs, Runner

OURS = "ours"
ROUNDS = 7
SIZE = next(size for size in SIZES if size.name == "256 x 384, 9 frames")
CASE = Case(layers=6, guidance_block=3, grid=Grid(3, 8, 12), steps=5, optimisation_steps=2)
RUN = replace(QUICK, steps=5)

Sides = Mapping[str, Callable[[], Call]]  # by name, what prepares a side's call


@dataclass(frozen=True)
class Contest:
    """Something to compute at a size, and who computes it."""

    name: str
    size: str  # in words
    sides: Callable[[], Sides]  # made when needed; one of them is `OURS`
    compiled: Callable[[], Sides] = dict  # rivals by torch.compile, which take a while to make


def play(
    sides: Mapping[str, Call],
    benchmark: Any,  # pytest-benchmark's fixture: it times ours, after the turns of the rivals
    planted: bool = False,  # ours does half as much work again
    clock: Clock = time.perf_counter,
) -> tuple[float, dict[str, float]]:
    """Median seconds of our call, and each rival's time as a multiple of ours, the median of the rounds.

    Sides take turns in each round, so that other load slows all of them.
    """
    rivals = {name: call for name, call in sides.items() if name != OURS}
    for call in (*rivals.values(), sides[OURS]):
        call()  # loads and compiles
    taken: dict[str, list[float]] = {name: [] for name in rivals}

    def rivals_turns() -> None:
        for name, call in rivals.items():
            taken[name].append(seconds(call, CALLS, clock=clock))

    def our_turn() -> None:
        for _ in range(PLANTED if planted else CALLS):
            sides[OURS]()

    benchmark.pedantic(our_turn, setup=rivals_turns, rounds=ROUNDS)
    ours = benchmark.stats.stats.data
    ratios = {
        name: statistics.median(theirs / own for theirs, own in zip(found, ours, strict=True))
        for name, found in taken.items()
    }
    return statistics.median(ours) / CALLS, ratios


def contests() -> list[Contest]:
    pixels = f"the small autoencoder, {subjects.FRAMES} frames of {subjects.WIDTH}x{subjects.HEIGHT}, float32"
    return [
        *operations(SIZE),
        Contest("guided step", f"{size_of(CASE)}, one update", guided_step),
        Contest("denoising step", f"{size_of(CASE)}, two prompts", denoising_step),
        Contest("whole run", f"{size_of(RUN)}, {RUN.steps} steps, from latents to latents", whole_run),
        Contest("encode", pixels, encode),
        Contest("decode", pixels, decode),
    ]


def operations(size: Size) -> list[Contest]:
    dtype = str(size.dtype).removeprefix("torch.")
    words = f"{size.name}, {size.heads} heads of {size.head_dim}, {dtype}"
    return [
        Contest(each.name, words, partial(passed, each, size, False), partial(passed, each, size, True))
        for each in passes()
    ]


def passed(each: Pass, size: Size, compiles: bool, slow: bool = False) -> Sides:
    """The sides of a pass on one set of inputs: those by torch.compile, or the others."""
    given = each.inputs(size, CPU, 0)
    return {
        OURS if rival.name == "chunked" else rival.name: partial(partial, rival.call, *given)
        for rival in each.rivals() + (each.slow_rivals() if slow else [])
        if rival.compiles == compiles and rival.name != "triton"
    }


def size_of(case: Case) -> str:
    grid = " x ".join(map(str, case.grid))
    return f"{case.layers} blocks of 8 heads x 64, float32, {grid} patches"


def by_runner(names: Iterable[str], case: Case, work: Callable[[Runner], Call]) -> Sides:
    return {OURS if name == PLAIN else name: partial(prepared, name, case, work) for name in names}


def guided_step(case: Case = CASE) -> Sides:
    """One update of the latents. The clip's flow and the injected keys and values are ready."""
    inputs, clip = case.inputs()

    def update(runner: Runner) -> Call:
        settings = case.settings
        capture = Capture("query_key", settings.guidance_blocks)
        targets = flow_targets(runner.features(clip, {}, capture), case.grid, settings)
        loss = FlowLoss(targets, case.grid, settings)
        injected = runner.features(clip, {}, Capture("key_value", settings.injection_blocks))
        return lambda: runner.gradient(loss, "latents", inputs, injected, capture, 1.0)

    return by_runner(SIDES, case, update)


def denoising_step(case: Case = CASE) -> Sides:
    """The predictions with and without the prompt."""
    both = case.inputs()
    sides = by_runner((RIVAL, PLAIN), case, lambda runner: partial(runner.forward, both, {}))
    return sides | {"diffusers, both in a batch": partial(in_a_batch, case, *both)}


def whole_run(case: Case = RUN, names: Iterable[str] = (RIVAL, PLAIN, "block by block")) -> Sides:
    run = case.run()
    return by_runner(names, case, lambda runner: partial(run, runner))


def optimisation(case: Case, names: Iterable[str]) -> Sides:
    """A whole run without its denoising forwards."""
    run = case.run()
    return by_runner(names, case, lambda runner: partial(run, WithoutDenoising(runner)))


class WithoutDenoising:
    """A Runner that predicts zeros in denoising steps."""

    def __init__(self, runner: Runner):
        self.transformer, self.features, self.gradient = runner.transformer, runner.features, runner.gradient

    def forward(self, batch: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        return [torch.zeros_like(inputs.latents) for inputs in batch]


def encode() -> Sides:
    pixels = subjects.random_pixels()
    return {OURS: partial(subjects.encoding, pixels)} | plain_encoding(pixels)


def decode() -> Sides:
    latents = subjects.random_latents()
    return {OURS: partial(subjects.decoding, latents)} | plain_decoding(latents)
