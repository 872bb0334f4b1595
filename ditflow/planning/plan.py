"""The plan of a run with one preset: the work of its phases, and the weights that are on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ditflow.memory.presets import Preset
from ditflow.memory.ring import Ring
from ditflow.planning.phases import Phases, Work
from ditflow.sampling.reuse import negative_passes
from ditflow.settings import Settings

X0_REFERENCE, X0_OPTIMISE = "x0 reference", "x0 optimise"  # with the loss x0
PROMPT_ONLY = "prompt only"  # a denoising step without a pass for the negative prompt


@dataclass(frozen=True)
class Phase:
    """One execution of a phase, such as one optimisation step or one denoising step."""

    name: str
    times: int  # executions in a run
    peak_bytes: int  # on the device, weights included
    flops: int
    attention_flops: int  # part of `flops`
    int8_flops: int  # another part, products in 8 bits
    moved_bytes: int  # in device memory, by all but products
    copied_bytes: int  # to the device


@dataclass(frozen=True)
class Plan:
    """A run with one preset."""

    preset: Preset
    resident: int  # number of transformer blocks that stay on the device
    streamed: int  # number of the other transformer blocks
    budget: int  # bytes of device memory that may be used
    host_bytes: int  # host memory for streamed weights and block inputs
    phases: tuple[Phase, ...]

    @property
    def largest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.peak_bytes)

    def peak_of(self, part: str) -> int:
        """The peak bytes of `text`, `encode` or `decode`; for any other part, of all transformer phases."""
        others = ("text", "encode", "decode")
        return max(
            phase.peak_bytes
            for phase in self.phases
            if (phase.name == part if part in others else phase.name not in others)
        )

    @property
    def fits(self) -> bool:
        return self.largest.peak_bytes <= self.budget

    @property
    def total_flops(self) -> int:
        return sum(phase.times * phase.flops for phase in self.phases)


def make_plan(phases: Phases, settings: Settings, preset: Preset, budget: int) -> Plan:
    """The plan of one preset, with as many resident blocks as fit into `budget` bytes.

    `phases` may be those of other settings, if their phases cost the same.
    """
    works = dict(_model_works(phases, settings, preset))
    sizes, layers = phases.block_bytes, phases.layer_bytes
    beside = max(work.peak_bytes for _, work in works.values())
    resident = _resident_blocks(phases, preset, budget - beside, sizes)
    whole = preset.text == "whole"
    tile = settings.decode_tile
    if tile == "auto":
        tile = preset.tile(phases.model.family.tiles)

    waiting = phases.pinned_bytes(resident) + max(work.host_bytes for _, work in works.values())
    return Plan(
        preset,
        resident,
        len(sizes) - resident,
        budget,
        max(waiting, 0 if whole else sum(layers)),
        (
            _phase("text", 1, phases.text(), layers, len(layers) if whole else 0),
            *([_phase("encode", 1, phases.encode(), [], 0)] if settings.has_clip else []),
            *(_phase(name, times, work, sizes, resident) for name, (times, work) in works.items()),
            _phase("decode", 1, phases.decode(tile), [], 0),
        ),
    )


def _model_works(
    phases: Phases, settings: Settings, preset: Preset
) -> Iterator[tuple[str, tuple[int, Work]]]:
    """The transformer's phases: (name, (executions in a run, work))."""
    if settings.gradient_steps and settings.has_clip:
        times = settings.gradient_steps if phases.reads_in_steps else 1
        yield "reference", (times, phases.reference())
    if settings.estimate_steps:
        yield X0_REFERENCE, (settings.estimate_steps, phases.x0_reference())
    if phases.injects:
        yield "injection", (settings.guided_steps, phases.injection())
    if settings.gradient_steps:
        times = settings.gradient_steps * settings.computed_gradients
        yield "optimise", (times, phases.optimise(preset.checkpoint, preset.block_inputs))
    if settings.estimate_steps:
        yield X0_OPTIMISE, (settings.estimate_steps * settings.updates, phases.x0_optimise())
    alone = steps_of_the_prompt_alone(phases, settings)
    if alone < settings.steps_made:
        yield "denoise", (settings.steps_made - alone, phases.denoise())
    if alone:
        yield PROMPT_ONLY, (alone, phases.denoise(True))


def step_work(plan: Plan, settings: Settings) -> list[int]:
    """The FLOPs of each denoising step of a run. Steps after the guided ones count as alike."""
    guided, plain = settings.guided_steps, settings.steps_made - settings.guided_steps
    total = {phase.name: phase.times * phase.flops for phase in plan.phases}
    denoising = sum(total.get(name, 0) for name in ("denoise", PROMPT_ONLY)) / settings.steps_made
    in_guided = ("injection", "optimise", X0_REFERENCE, X0_OPTIMISE)
    guiding = sum(total.get(name, 0) for name in in_guided) / max(guided, 1)
    return [round(denoising + guiding)] * guided + [round(denoising)] * plain


def steps_of_the_prompt_alone(phases: Phases, settings: Settings) -> int:
    """How many denoising steps run no pass for the negative prompt."""
    alone, done = 0, 0
    for scales in phases.model.guidance_scales(settings):  # of an expert, which reuses nothing of another
        guided = max(0, settings.guided_steps - done)
        alone += scales[:guided].count(1)
        alone += sum(negative != "run" for negative in negative_passes(settings, scales[guided:]))
        done += len(scales)
    return alone


def _resident_blocks(phases: Phases, preset: Preset, free: int, sizes: list[int]) -> int:
    """How many blocks fit into `free` bytes; at least those whose weights a guided step's graph holds."""
    least = 0
    if phases.settings.needs_gradient and preset.checkpoint == "none":
        least = max(phases.settings.guidance_blocks) + 1
    fitting = (n for n in range(len(sizes), least, -1) if Ring(sizes, n).device_bytes <= free)
    return next(fitting, least)


def _phase(name: str, times: int, work: Work, sizes: list[int], resident: int) -> Phase:
    """A phase with its weights added. A repeated phase copies what its second execution does."""
    ring = Ring(sizes, resident)
    for _ in range(1 if times == 1 else 2):
        copied = sum(ring.replay(order) for order in work.walks)
    return Phase(
        name,
        times,
        work.peak_bytes + ring.device_bytes,
        work.flops,
        work.attention_flops,
        work.int8_flops,
        work.moved_bytes,
        work.copied_bytes + copied,
    )
