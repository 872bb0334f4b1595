"""Whole steps of a run with CogVideoX, random weights: what `bench.gpu` measures after the operations.

An update: one optimisation step. A denoising step: the predictions with and without the prompt. A guided
step: the clip's keys and values read, all the updates of a default run, and the denoising that follows.
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

from bench.harness import GIB, Ceilings, Deadline, Meter
from ditflow.guidance.targets import prepare_guidance
from ditflow.memory.arrange import arrange
from ditflow.memory.capacity import capped, give_back, ran_out, usable_bytes
from ditflow.memory.presets import presets
from ditflow.models.attention import KERNELS
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.cogvideox.vae import latent_frames
from ditflow.models.protocols import Inputs, Runner, Until
from ditflow.planning.choice import make_plans, phases_of
from ditflow.planning.plan import Plan
from ditflow.sampling.loop import predict
from ditflow.settings import Settings
from ditflow.settings.settings import PRESETS, shipped
from ditflow_kernels import backends

CHANNELS, PIXELS = 16, 8  # of latents; a side of one
STEPS = {  # and the phases of a plan that happen in it
    "update": ("optimise",),
    "denoising step": ("denoise",),
    "guided step": ("injection", "optimise", "denoise"),
}
CARDS = ("24gb", "16gb", "12gb")  # presets of the cards that most have
CALLS = 4  # of each step, about, the first one included
SLACK = 2.5  # how many times the least time a step may take, weights and warming up included
BROKEN = "broken"  # begins the reason where it is ours that fails


class Variant(NamedTuple):
    """A way to compute the steps."""

    model: str
    frames: int
    preset: str = "auto"  # the fastest that fits
    attention: str = "sdpa"
    compiled: bool = False
    kernels: str = "triton"


@dataclass(frozen=True)
class StepRow:
    """A step of a variant; `reason` says why there are no numbers."""

    variant: dict[str, Any]
    step: str
    milliseconds: float | None = None
    allocated_bytes: int | None = None  # at the peak, weights included
    reserved_bytes: int | None = None
    planned_bytes: int | None = None  # what the plan says of allocated_bytes
    joules: float | None = None  # where the driver tells
    preset: str | None = None  # that was used
    resident: str | None = None  # blocks on the device, of all
    reason: str | None = None


def variants(model: str, frames: int) -> tuple[list[Variant], list[Variant]]:
    """The plain one, followed by those for `CARDS`; and all others that differ from it in one thing."""
    plain = Variant(model, frames)
    changes = [{"kernels": "chunked"}, {"compiled": True}]
    changes += [{"attention": name} for name in KERNELS if name != "sdpa"]
    changes += [{"preset": name} for name in PRESETS if name not in CARDS]
    cards = [plain._replace(preset=name) for name in CARDS]
    return [plain, *cards], [plain._replace(**change) for change in changes]


def measure_steps(
    meter: Meter, deadline: Deadline, ceilings: Ceilings, wanted: Iterable[Variant], models: Models
) -> Iterator[StepRow]:
    """Every step of every variant, as far as time and memory go; what fails does not end the others."""
    for variant in wanted:
        reason = None
        try:
            yield from _measured(meter, deadline, ceilings, variant, models)
        except Exception as error:
            # what a package or a compiler cannot do competes with nobody
            theirs = variant.compiled or variant.attention != "sdpa"
            reason = f"{'fails' if theirs else BROKEN}: {first_line(error)}"
            if ran_out(error):
                reason = "out of memory"
            elif not theirs:
                traceback.print_exc()
        if reason:  # here nothing holds the failed attempt's tensors any more
            yield StepRow(variant._asdict(), "all", reason=reason)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:80]


def _measured(
    meter: Meter, deadline: Deadline, ceilings: Ceilings, variant: Variant, models: Models
) -> Iterator[StepRow]:
    settings = Settings(model=variant.model, frames=variant.frames)
    plan, reason = plan_of(settings, variant, meter)
    reason = reason or why_not(settings, variant, plan, deadline, ceilings, models, meter)
    if reason:
        yield StepRow(variant._asdict(), "all", reason=reason)
        return
    steps = [step for step in STEPS if step == "denoising step" or KERNELS[variant.attention].gradient]
    peaks = {phase.name: phase.peak_bytes for phase in plan.phases}
    place = {"preset": plan.preset.name, "resident": f"{plan.resident} of {plan.resident + plan.streamed}"}
    with in_place(meter, variant, plan, models) as runner:
        calls = calls_of(runner, settings, meter.device, "guided step" in steps)
        for step in steps:
            cost = meter.cost(calls[step])
            planned = max(peaks[phase] for phase in STEPS[step])
            yield StepRow(variant._asdict(), step, **cost._asdict(), planned_bytes=planned, **place)


def plan_of(settings: Settings, variant: Variant, meter: Meter) -> tuple[Plan | None, str | None]:
    """The plan of a variant's preset on this device, or why there is none."""
    named = variant.preset != "auto"
    wanted = [preset for preset in presets()[::-1] if not named or preset.name == variant.preset]
    room = usable_bytes(variant.preset, meter.device)
    plan = make_plans(settings, wanted, "cuda", room, until_one_fits=True)[-1]
    if plan.fits:
        return plan, None
    needed, there = plan.largest.peak_bytes / GIB, plan.budget / GIB
    return None, f"preset {plan.preset.name} does not fit: {needed:.1f} GiB planned, {there:.1f} to be had"


def why_not(
    settings: Settings,
    variant: Variant,
    plan: Plan,
    deadline: Deadline,
    ceilings: Ceilings,
    models: Models,
    meter: Meter,
) -> str | None:
    dtype = getattr(torch, settings.dtype)
    if missing := KERNELS[variant.attention].missing(meter.device, dtype):
        return missing
    if (needed := models.host_bytes(settings)) > (free := psutil.virtual_memory().available):
        return f"needs {needed / GIB:.0f} GiB of host memory, {free / GIB:.0f} are free"
    if (needed := seconds_needed(settings, variant, plan, ceilings)) > deadline.left:
        return f"no time left: about {needed:.0f} s are needed, {max(0, deadline.left):.0f} are left"
    return None


def seconds_needed(settings: Settings, variant: Variant, plan: Plan, ceilings: Ceilings) -> float:
    """Of all steps together, from the planned work."""
    flops = {phase.name: phase.flops for phase in plan.phases}
    guided = flops["injection"] + settings.optimisation_steps * flops["optimise"] + flops["denoise"]
    work = guided + flops["optimise"] + flops["denoise"] + flops["reference"]
    return CALLS * SLACK * work / ceilings.product_flops + (60 if variant.compiled else 10)


def calls_of(
    runner: Runner, settings: Settings, device: torch.device, guided: bool
) -> dict[str, Callable[[], Any]]:
    """Each step on random latents; those with gradients only if they are wanted."""
    draw, config = torch.Generator(device).manual_seed(0), runner.backbone.config

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, device=device)

    width, height = settings.size
    frames = latent_frames(settings.frames)
    latents, clip = numbers(2, 1, frames, config.in_channels, height // PIXELS, width // PIXELS)
    prompt, negative = numbers(2, 1, config.max_text_seq_length, config.text_embed_dim)
    grid, timestep = runner.backbone.grid(latents), torch.full((1,), 900, device=device)
    inputs = Inputs(latents, prompt, timestep, runner.backbone.embedding(grid))
    weight = settings.guidance_scale
    calls = {"denoising step": lambda: predict(runner, inputs, negative, {}, weight)}
    if not guided:
        return calls
    guidance = prepare_guidance(runner, settings, grid, clip, prompt, inputs.embedding)
    once, taken = replace(guidance, steps=1), Until("key_value", settings.injection_blocks)

    def read() -> dict:
        return runner.features(replace(inputs, latents=clip), {}, taken)

    def guided_step() -> torch.Tensor:
        injected = read()
        optimised, *_ = guidance.optimise(runner, inputs, injected, 0)
        return predict(runner, optimised, negative, injected, weight)

    injected = read()
    calls["update"] = lambda: once.optimise(runner, inputs, injected, 0)
    return calls | {"guided step": guided_step}


@contextmanager
def in_place(meter: Meter, variant: Variant, plan: Plan, models: Models) -> Iterator[Runner]:
    """The model as a variant wants it, held to the memory of its preset's card."""
    transformer = models.transformer(variant.model)
    chosen = patch.dict(backends.FASTEST, {meter.device.type: variant.kernels})
    try:
        with capped(variant.preset, meter.device), chosen:
            backbone = CogVideoX(transformer, variant.attention, variant.compiled)
            yield arrange(backbone, meter.device, plan.preset, plan.resident)
    finally:
        models.take_back(variant.model)
        torch._dynamo.reset()
        gc.collect()
        give_back(meter.device)


class Models:
    """Transformers with random weights, each made once and kept in host memory between its turns."""

    def __init__(self, device: torch.device, free_bytes: Callable[[], int], config_of: Callable[[str], dict]):
        self.device, self.free_bytes, self.config_of = device, free_bytes, config_of
        self.made: dict[str, Any] = {}
        self.home: dict[str, list[torch.Tensor]] = {}  # the weights' values, by model

    def host_bytes(self, settings: Settings) -> int:
        """What a model takes there, and once more where its blocks wait in pinned memory."""
        weights = sum(phases_of(settings, "cuda").block_bytes)
        return weights if settings.model in self.made else 2 * weights

    def transformer(self, model: str) -> Any:
        if model not in self.made:
            settings = Settings(model=model)
            room = self.free_bytes() > 1.5 * sum(phases_of(settings, "cuda").block_bytes)
            # a GPU draws random numbers far quicker
            made = random_transformer(
                self.config_of(model),
                self.device if room else torch.device("cpu"),
                getattr(torch, settings.dtype),
            )
            self.made[model] = made.to("cpu")
            self.home[model] = [parameter.data for parameter in made.parameters()]
        return self.made[model]

    def take_back(self, model: str) -> None:
        """Have the weights in host memory again, where they still are: nothing changes them."""
        for parameter, values in zip(self.made[model].parameters(), self.home[model], strict=True):
            parameter.data = values
        self.made[model].to("cpu")  # what is no parameter


def shipped_config(model: str) -> dict:
    return shipped(f"models/{model}.yaml")["transformer"]


def random_transformer(config: dict, device: torch.device, dtype: torch.dtype) -> Any:
    """Weights as the layers initialise themselves, in their precision from the start."""
    from diffusers import CogVideoXTransformer3DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return CogVideoXTransformer3DModel(**config)
    finally:
        torch.set_default_dtype(before)
