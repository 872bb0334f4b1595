"""Chooses a run's memory preset: the one asked for, or the fastest that fits."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from ditflow.errors import DitflowError
from ditflow.memory.capacity import usable_bytes
from ditflow.memory.presets import GIB, PRESETS, Preset, presets
from ditflow.memory.torch_state import torch_state
from ditflow.models.families import family_of
from ditflow.planning.kept import keep, read_kept
from ditflow.planning.phases import Phases
from ditflow.planning.plan import Plan, make_plan
from ditflow.settings import Settings
from ditflow.settings.settings import UNCHANGED

MIB = 1 << 20
RETRY_SHARE = 0.9  # of the failed plan's peak: the next plan needs at most this much

ADVICE = "use fewer --frames or a smaller --size"

# methods of `Phases` whose results no setting of guidance changes
OF_VIDEO = ("layer_bytes", "text", "encode", "decode")

# settings that do not change what a phase costs
NEUTRAL = {
    **UNCHANGED,
    "video": "",
    "start": 0,
    "stride": 1,
    "fps": "auto",
    "fit": "crop",
    "device": "auto",
    "speed": "exact",
    "attention_forward": "same",
    "memory": "auto",
    "preset": "auto",
    "decode_tile": "auto",
    "prompt": "",
    "negative_prompt": "",
    "source_prompt": "",
    "optimisation_steps": 1,
    "gradients": 0,
    "learning_rate": (0.0, 0.0),
    "steps": 2,  # so that each of two losses can have one
    "initial_latents": "noise",
    "guidance_scale": (1.0,),
    "dynamic_scale": False,
    "seed": 0,
    "output": "",
    "format": "mp4",
    "keep_precision": False,
}


def make_plans(
    settings: Settings,
    wanted: Iterable[Preset],
    device: str,  # type of device
    budget: int | None = None,  # bytes; None: what a card of each preset's size has
    until_one_fits: bool = False,
) -> list[Plan]:
    """The plans of the wanted presets, in their order."""
    phases, found = phases_of(settings, device), []
    known = len(phases.measured)
    for preset in wanted:
        found.append(make_plan(phases, settings, preset, preset.budget if budget is None else budget))
        if until_one_fits and found[-1].fits:
            break
    if len(phases.measured) > known:
        keep(phases)
    _of_video(phases).update(
        (name, work) for name, work in phases.measured.items() if name.split()[0] in OF_VIDEO
    )
    return found


def phases_of(settings: Settings, device: str) -> Phases:
    """The phases of a run, cached because the next plan may need the same ones."""
    alike = replace(
        settings,
        **NEUTRAL,
        scheduler=family_of(settings.model).schedulers[0],
        guided=float(settings.guided_steps > 0),
        x0_after=0.5 if settings.gradient_steps and settings.estimate_steps else 1.0,
        negative_below=2.0 if settings.negative_below > 1 else 1.0,  # whether a difference is kept
        step_cache="off" if settings.step_threshold is None else "1",
        saved_embedding="a file" if settings.saved_embedding else "",
        motion="" if settings.has_clip else "a file",
    )
    return _phases(alike, device)


@lru_cache(maxsize=4)
def _phases(alike: Settings, device: str) -> Phases:
    """Phases with what other processes, and plans of other guidance, have measured of them."""
    phases = Phases(alike, device)
    phases.measured |= _of_video(phases) | read_kept(phases)
    return phases


def _of_video(phases: Phases) -> dict[str, Any]:
    """What this process knows of text, encoding and decoding, for all plans of a video of this size."""
    settings, model = phases.settings, phases.model
    configs = json.dumps([model.family.pipeline, model.configs], sort_keys=True)
    return _measured_of_video(configs, settings.dtype, settings.frames, settings.size, phases.device)


@lru_cache(maxsize=4)
def _measured_of_video(*_: Hashable) -> dict[str, Any]:
    return {}


@torch_state()
def choose_plan(settings: Settings, device: torch.device) -> Plan:
    """The plan of the preset that the settings name, else of the largest preset that fits.

    Raises DitflowError if it does not fit. The message says which phase is too large, by how much, and what
    would fit.
    """
    name = asked_preset(settings)
    candidates = presets()[: PRESETS.index(name) + 1] if name else presets()
    budget = usable_bytes(settings.memory, device)
    tried = make_plans(settings, candidates[::-1], device.type, budget, until_one_fits=True)
    return pick_plan(tried[::-1], name)


def asked_preset(settings: Settings) -> str | None:
    """The preset named by `preset`, or else by `memory`."""
    return next((given for given in (settings.preset, settings.memory) if given in PRESETS), None)


def pick_plan(plans: Sequence[Plan], name: str | None) -> Plan:
    """The plan of the named preset, or the last plan that fits. `plans` start with the smallest preset.

    Raises DitflowError if it does not fit.
    """
    fitting = [plan for plan in plans if plan.fits]
    if not name:
        if fitting:
            return fitting[-1]
        raise DitflowError(f"not enough memory: {excess_in_words(plans[0])}; {ADVICE}")
    index = next(index for index, plan in enumerate(plans) if plan.preset.name == name)
    if plans[index].fits:
        return plans[index]
    smaller = [plan.preset.name for plan in plans[:index] if plan.fits]
    advice = f"--memory {smaller[-1]} fits" if smaller else ADVICE
    raise DitflowError(f"memory preset {name} does not fit: {excess_in_words(plans[index])}; {advice}")


@torch_state()
def smaller_plan(settings: Settings, device: torch.device, failed: Plan, phase: str) -> Plan | None:
    """The next plan to try: its `phase` needs clearly less memory than in the plan that failed.

    Takes a smaller preset, or the smallest preset with fewer resident blocks. None if there is no such plan.
    """
    limit = int(RETRY_SHARE * failed.peak_of(phase))
    budget = usable_bytes(settings.memory, device)
    if phase not in ("text", "decode"):
        budget = min(budget, limit)  # limits the resident blocks
    for preset in presets()[: presets().index(failed.preset)][::-1] or (failed.preset,):
        plan = make_plans(settings, [preset], device.type, budget)[0]
        gives_up_blocks = preset is failed.preset and plan.resident < failed.resident
        if plan.peak_of(phase) <= limit or gives_up_blocks:
            return plan
    return None


def excess_in_words(plan: Plan) -> str:
    """By how much a plan exceeds its budget: the phase, what it needs and what there is."""
    phase = plan.largest
    needed, excess, there = map(
        size_in_words, (phase.peak_bytes, phase.peak_bytes - plan.budget, plan.budget)
    )
    return f"{phase.name} needs {needed}, {excess} more than the {there} available"


def size_in_words(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
