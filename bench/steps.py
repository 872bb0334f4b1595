"""Whole steps of a run with random weights, as `bench.gpu` measures them.

An update: one optimisation step. A denoising step: the predictions with and without the prompt, or with the
prompt only, where a speed leaves the other out. A guided step: the clip's keys and values are read, if the
model's runs inject them, then all updates of a run at this speed and the denoising follow.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import psutil
import torch
from torch import nn

from bench.harness import CPU, Call, Ceilings, CudaMeter, Deadline
from bench.subjects import random_inputs, random_network
from bench.tables import gib
from ditflow.guidance.targets import prepare_guidance
from ditflow.memory.capacity import capped, give_back, ran_out, usable_bytes
from ditflow.memory.placement import arrange
from ditflow.memory.presets import PRESETS, presets
from ditflow.models.attention import KERNELS, fastest_forward
from ditflow.models.compute import compute_in
from ditflow.models.families import family_of
from ditflow.models.protocols import Capture, Injected, Runner
from ditflow.planning.choice import make_plans, phases_of
from ditflow.planning.fake import FakeModel
from ditflow.planning.plan import PROMPT_ONLY, Plan
from ditflow.sampling.loop import predict
from ditflow.settings import Settings
from ditflow.settings.speed import SPEEDS, exact
from ditflow_kernels import backends

STEPS = {  # and the phases of a plan that they consist of, in a guided step after any injection
    "update": ("optimise",),
    "denoising step": ("denoise",),
    PROMPT_ONLY: (PROMPT_ONLY,),
    "guided step": ("optimise", "denoise"),
}
CARDS = ("24gb", "16gb", "12gb")  # presets of the most common cards
CALLS = 4  # of each step, roughly, with the first one
SLACK = 2.5  # a step may take this many times its least time, with copies and warm-up
BROKEN = "broken"  # starts the reason if the failure is ours


class Machine(NamedTuple):
    """A device to measure on, and the time for it."""

    meter: CudaMeter
    deadline: Deadline
    ceilings: Ceilings


class Variant(NamedTuple):
    """A way to compute the steps."""

    model: str
    frames: int
    preset: str = "auto"  # the fastest that fits
    attention: str = "sdpa"
    compiled: bool = False
    kernels: str = "triton"
    speed: str = "exact"

    @property
    def settings(self) -> Settings:
        return Settings(model=self.model, frames=self.frames, speed=self.speed)


@dataclass(frozen=True)
class StepRow:
    """A step of a variant; `reason` says why there are no numbers."""

    variant: dict[str, Any]
    step: str
    milliseconds: float | None = None
    allocated_bytes: int | None = None  # at the peak, with the weights
    reserved_bytes: int | None = None
    planned_bytes: int | None = None  # the plan's value of allocated_bytes
    joules: float | None = None  # if the driver counts them
    preset: str | None = None  # the one used
    resident: str | None = None  # blocks on the device, of all
    reason: str | None = None


def at_each_speed(model: str, frames: int) -> list[Variant]:
    """Of the fastest preset that fits, exact first."""
    return [Variant(model, frames, speed=speed) for speed in SPEEDS]


def variants(model: str, frames: int) -> tuple[list[Variant], list[Variant]]:
    """Those at each speed, then those for `CARDS`; and all others that change one thing."""
    plain, *_ = speeds = at_each_speed(model, frames)
    changes = [{"kernels": "chunked"}, {"compiled": True}]
    changes += [{"attention": name} for name in KERNELS if name != "sdpa"]
    changes += [{"preset": name} for name in PRESETS if name not in CARDS]
    cards = [plain._replace(preset=name) for name in CARDS]
    return [*speeds, *cards], [plain._replace(**change) for change in changes]


def measure_steps(machine: Machine, wanted: Iterable[Variant], models: Models) -> Iterator[StepRow]:
    """Every step of every variant, as time and memory allow. A failure does not stop the others."""
    for variant in wanted:
        reason = None
        try:
            yield from _measured(machine, variant, models)
        except Exception as error:
            # a failure of a package or a compiler is not ours
            theirs = variant.compiled or variant.attention != "sdpa"
            reason = f"{'fails' if theirs else BROKEN}: {first_line(error)}"
            if ran_out(error):
                reason = "out of memory"
            elif not theirs:
                traceback.print_exc()
        if reason:  # outside `except`, where nothing holds the failed attempt's tensors any more
            yield StepRow(variant._asdict(), "all", reason=reason)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:80]


def _measured(machine: Machine, variant: Variant, models: Models) -> Iterator[StepRow]:
    settings, meter = variant.settings, machine.meter
    plan = plan_of(settings, variant, meter)
    if reason := why_not(settings, variant, plan, machine, models):
        yield StepRow(variant._asdict(), "all", reason=reason)
        return
    peaks = {phase.name: phase.peak_bytes for phase in plan.phases}
    guides = KERNELS[variant.attention].gradient
    possible = {phase for phase in peaks if guides or phase != "optimise"}
    steps = [step for step, phases in STEPS.items() if possible >= {*phases}]
    place = {"preset": plan.preset.name, "resident": f"{plan.resident} of {plan.resident + plan.streamed}"}
    with in_place(meter, variant, plan, models) as runner:
        calls = calls_of(runner, settings, meter.device, guides)
        for step in steps:
            cost = meter.cost(calls[step])
            planned = max(peaks[phase] for phase in STEPS[step])
            yield StepRow(variant._asdict(), step, **cost._asdict(), planned_bytes=planned, **place)


def plan_of(settings: Settings, variant: Variant, meter: CudaMeter) -> Plan:
    """The plan of a variant's preset on this device; one that may not fit."""
    named = variant.preset != "auto"
    wanted = [preset for preset in presets()[::-1] if not named or preset.name == variant.preset]
    usable = usable_bytes(variant.preset, meter.device)
    return make_plans(settings, wanted, "cuda", usable, until_one_fits=True)[-1]


def why_not(settings: Settings, variant: Variant, plan: Plan, machine: Machine, models: Models) -> str | None:
    if not plan.fits:
        peak, budget = gib(plan.largest.peak_bytes), gib(plan.budget)
        return f"preset {plan.preset.name} does not fit: {peak} GiB planned, {budget} available"
    if missing := KERNELS[variant.attention].missing(machine.meter.device, getattr(torch, settings.dtype)):
        return missing
    if (needed := models.host_bytes(settings)) > (free := psutil.virtual_memory().available):
        return f"needs {gib(needed)} GiB of host memory, {gib(free)} are free"
    if (needed := seconds_needed(settings, variant, plan, machine.ceilings)) > machine.deadline.left:
        return f"no time left: needs about {needed:.0f} s, {max(0, machine.deadline.left):.0f} are left"
    return None


def seconds_needed(settings: Settings, variant: Variant, plan: Plan, ceilings: Ceilings) -> float:
    """Time of all steps together, from the planned work."""
    flops = {phase.name: phase.flops for phase in plan.phases}
    updates = settings.computed_gradients + 1
    work = updates * flops["optimise"] + 2 * flops["denoise"] + flops["reference"] + flops.get("injection", 0)
    return CALLS * SLACK * work / ceilings.product_flops + (60 if variant.compiled else 10)


def calls_of(runner: Runner, settings: Settings, device: torch.device, guided: bool) -> dict[str, Call]:
    """Each step on random latents; those with gradients only if `guided`."""
    transformer, weight = runner.transformer, settings.scale_of(0)
    like = FakeModel(settings).inputs(transformer)
    inputs, other = random_inputs(transformer, like.latents.shape, like.prompt.shape[1:], device)
    clip, negative, grid = other.latents, other.prompt, transformer.grid(inputs.latents)
    calls = {
        "denoising step": lambda: predict(runner, inputs, negative, {}, weight),
        PROMPT_ONLY: lambda: predict(runner, inputs, negative, {}, 1),
    }
    if not guided:
        return calls
    guidance = prepare_guidance(runner, settings, grid, clip, inputs.prompt, inputs.embedding)
    once, capture = replace(guidance, steps=1), Capture("key_value", settings.injection_blocks)

    def read() -> Injected:
        return runner.features(replace(inputs, latents=clip), {}, capture) if settings.injection else {}

    def guided_step() -> torch.Tensor:
        injected = read()
        optimised, *_ = guidance.optimise(runner, inputs, injected, 0)
        return predict(runner, optimised, negative, injected, weight)

    injected = read()
    calls["update"] = lambda: once.optimise(runner, inputs, injected, 0)
    return calls | {"guided step": guided_step}


@contextmanager
def in_place(meter: CudaMeter, variant: Variant, plan: Plan, models: Models) -> Iterator[Runner]:
    """A variant's model on the device, limited to the memory of its preset's card."""
    settings = variant.settings
    network = models.network(settings)
    forward = settings.attention_forward
    if forward == "auto":
        forward = fastest_forward(meter.device, getattr(torch, settings.dtype), settings.deterministic)
    chosen = patch.dict(backends.FASTEST, {meter.device.type: variant.kernels})
    try:
        with capped(variant.preset, meter.device), chosen:
            family = family_of(variant.model)
            kernels = variant.attention, None if forward == "same" else forward
            transformer = family.transformer(network, kernels[0], variant.compiled, kernels[1])
            yield arrange(transformer, meter.device, plan.preset, plan.resident)
    finally:
        models.take_back(settings)
        torch._dynamo.reset()
        gc.collect()
        give_back(meter.device)


class Models:
    """Transformers with random weights, each made once and kept in host memory while not in use."""

    def __init__(self, meter: CudaMeter, config_of: Callable[[str], dict]):
        self.meter, self.config_of = meter, config_of
        self.made: dict[tuple[str, str], nn.Module] = {}  # by model and --compute
        self.home: dict[tuple[str, str], list[torch.Tensor]] = {}  # values of the weights

    def host_bytes(self, settings: Settings) -> int:
        """Host memory still needed: for the model if it is not made yet, and for blocks in pinned memory."""
        pinned = sum(phases_of(settings, "cuda").block_bytes)
        return pinned + (0 if key(settings) in self.made else _made_bytes(settings))

    def network(self, settings: Settings) -> nn.Module:
        if key(settings) not in self.made:
            family, fits = family_of(settings.model), self.meter.free_bytes() > 1.5 * _made_bytes(settings)
            device = self.meter.device if fits else CPU  # a GPU draws random numbers much faster
            config, dtype = self.config_of(settings.model), getattr(torch, settings.dtype)
            made = random_network(settings.model, config, device, dtype)
            blocks = family.transformer(made, "sdpa", False).blocks
            compute_in(settings.compute, blocks, family.packed_parts, device)
            self.made[key(settings)] = made.to("cpu")
            self.home[key(settings)] = [parameter.data for parameter in made.parameters()]
        return self.made[key(settings)]

    def take_back(self, settings: Settings) -> None:
        """Point the weights at their values in host memory again; nothing has changed those."""
        made, home = self.made[key(settings)], self.home[key(settings)]
        for parameter, values in zip(made.parameters(), home, strict=True):
            parameter.data = values
        made.to("cpu")  # buffers


def key(settings: Settings) -> tuple[str, str]:
    return settings.model, settings.compute


def _made_bytes(settings: Settings) -> int:
    """The blocks' weights before they are rounded."""
    return sum(phases_of(exact(settings), "cuda").block_bytes)
