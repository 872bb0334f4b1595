"""Which preset a run uses: the fastest that fits, or the one asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from ditflow.errors import DitflowError
from ditflow.guidance.targets import check_blocks
from ditflow.memory.capacity import usable_bytes
from ditflow.memory.presets import GIB, PRESETS, Preset, presets
from ditflow.models.families import family_of
from ditflow.models.storage import check_weights
from ditflow.planning.phases import Phases
from ditflow.planning.plan import Plan, make_plan
from ditflow.settings import Settings

MIB = 1 << 20
LESS = 0.9  # of what a plan that failed needed: the next one should not fail too

# settings that do not change what a phase costs
NEUTRAL = {
    "video": "",
    "start": 0,
    "stride": 1,
    "fit": "crop",
    "device": "auto",
    "memory": "auto",
    "preset": "auto",
    "decode_tile": "auto",
    "prompt": "",
    "negative_prompt": "",
    "source_prompt": "",
    "optimisation_steps": 1,
    "learning_rate": (0.0, 0.0),
    "steps": 1,
    "dynamic_scale": False,
    "seed": 0,
    "output": "",
    "format": "mp4",
    "keep_precision": False,
}
_phases = lru_cache(maxsize=4)(Phases)


def make_plans(
    settings: Settings,
    wanted: Iterable[Preset],
    device: str,  # its type
    budget: int | None = None,  # bytes; by default what each preset's own card has
    until_one_fits: bool = False,
) -> list[Plan]:
    """The plans of some presets, in their order."""
    phases, found = phases_of(settings, device), []
    for preset in wanted:
        found.append(make_plan(phases, settings, preset, preset.budget if budget is None else budget))
        if until_one_fits and found[-1].fits:
            break
    return found


def phases_of(settings: Settings, device: str) -> Phases:
    """The phases of a run, cached: the next plan may need the same."""
    alike = replace(
        settings,
        **NEUTRAL,
        scheduler=family_of(settings.model).schedulers[0],
        guided=float(settings.guided_steps > 0),
        saved_embedding="a file" if settings.saved_embedding else "",
    )
    return _phases(alike, device)


def plan_all(settings: Settings) -> tuple[list[Plan], Plan | None, str]:
    """Every preset's plan, the one that a run here would use, and why it or none.

    Without a GPU and without `settings.memory`, each preset is held against its own card, and none is chosen.
    """
    check_weights(settings.weights)
    check_blocks(settings, len(phases_of(settings, "cuda").block_bytes))
    device = torch.device(*("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else ("cpu",))
    here = settings.memory != "auto" or settings.preset != "auto" or device.type == "cuda"
    budget = usable_bytes(settings.memory, device) if here else None
    plans = make_plans(settings, presets(), "cuda", budget)
    if not here:
        return plans, None, "None is chosen: there is no GPU here. --memory GB tells what would be."
    name = asked_preset(settings)
    try:
        chosen = _pick(plans, name)
    except DitflowError as error:
        return plans, None, str(error)
    reason = "as asked for" if name else "the fastest that fits"
    why = f"{chosen.preset.name} is chosen: {reason}, with {chosen.budget / GIB:.1f} GiB to use."
    return plans, chosen, why


def choose_plan(settings: Settings, device: torch.device) -> Plan:
    """The plan of the preset that is named, else of the largest that fits.

    Raises DitflowError where it does not fit: which phase is too large, by how much, and what would.
    """
    name = asked_preset(settings)
    candidates = presets()[: PRESETS.index(name) + 1] if name else presets()
    budget = usable_bytes(settings.memory, device)
    tried = make_plans(settings, candidates[::-1], device.type, budget, until_one_fits=True)
    return _pick(tried[::-1], name)


def asked_preset(settings: Settings) -> str | None:
    """The preset that `preset` names, or `memory`."""
    return next((given for given in (settings.preset, settings.memory) if given in PRESETS), None)


def _pick(plans: Sequence[Plan], name: str | None) -> Plan:
    """Of plans, the smallest preset's first: the one of that name, or the last that fits."""
    fitting = [plan for plan in plans if plan.fits]
    named = [plan for plan in plans if plan.preset.name == name]
    if picked := [plan for plan in named if plan.fits] if name else fitting:
        return picked[-1]
    below = [plan for plan in fitting if plans.index(plan) < plans.index(named[0])] if name else []
    raise DitflowError(misfit(named[0] if name else plans[0], below[-1] if below else None))


def smaller_plan(settings: Settings, device: torch.device, failed: Plan, phase: str) -> Plan | None:
    """The next plan of which a phase needs clearly less than of one that failed there.

    Of a smaller preset, or of the smallest with fewer blocks on the device; None where there is none.
    """
    limit = int(LESS * failed.peak_of(phase))
    budget = usable_bytes(settings.memory, device)
    if phase not in ("text", "decode"):
        budget = min(budget, limit)  # for the blocks that stay
    for preset in presets()[: presets().index(failed.preset)][::-1] or (failed.preset,):
        plan = make_plans(settings, [preset], device.type, budget)[0]
        gives_up_blocks = preset is failed.preset and plan.resident < failed.resident
        if plan.peak_of(phase) <= limit or gives_up_blocks:
            return plan
    return None


def misfit(plan: Plan, fitting: Plan | None) -> str:
    """Why a plan cannot be run, and what to do."""
    phase = plan.largest
    advice = (
        f"--memory {fitting.preset.name} fits" if fitting else "fewer --frames or a smaller --size need less"
    )
    return (
        f"memory preset {plan.preset.name} does not fit: {phase.name} needs {_size(phase.peak_bytes)}, "
        f"{_size(phase.peak_bytes - plan.budget)} more than the {_size(plan.budget)} to be had; {advice}"
    )


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
