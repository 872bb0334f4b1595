"""What a plan is for, and what it says first: whether the run fits there, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ditflow.errors import DitflowError
from ditflow.files import shipped_names
from ditflow.guidance.targets import check_blocks
from ditflow.memory.capacity import gigabytes, usable_bytes
from ditflow.memory.presets import budget, presets
from ditflow.memory.torch_state import torch_state
from ditflow.models.compute import check_compute
from ditflow.models.families import family_of
from ditflow.models.storage import check_weights
from ditflow.planning.ceilings import Ceilings
from ditflow.planning.choice import (
    asked_preset,
    excess_in_words,
    make_plans,
    phases_of,
    pick_plan,
    size_in_words,
)
from ditflow.planning.plan import Plan
from ditflow.progress import duration
from ditflow.settings import Settings

STEP_CACHE = "The work is the most that a run takes: only a run shows how often --step-cache reuses blocks."
EXPERTS = "The model has two transformers of at most this size; the one that a step needs is loaded."


@dataclass(frozen=True)
class Target:
    """What a run is planned for."""

    device: str  # type of device: cpu or cuda
    budget: int | None  # bytes that it may use; None: unknown, so each preset gets a card of its size

    @classmethod
    def here(cls, settings: Settings, device: torch.device) -> Target:
        """A device of this machine."""
        return cls(device.type, usable_bytes(settings.memory, device))

    @classmethod
    def elsewhere(cls, settings: Settings, card: int | None) -> Target:
        """A GPU that is not in this machine, with `card` gigabytes or with what the settings say."""
        asked = settings.memory if settings.memory != "auto" else settings.preset
        sizes = ([] if card is None else [card]) + ([] if asked == "auto" else [gigabytes(asked)])
        return cls("cuda", budget(min(sizes)) if sizes else None)


@dataclass(frozen=True)
class Planned:
    """The plans of all presets, the smallest first, and the one that the run would take."""

    target: Target
    plans: list[Plan]
    chosen: Plan | None  # None: nothing fits, or the memory is unknown
    verdict: str  # a sentence
    notes: str  # on what the plans do not show

    @property
    def on_cpu(self) -> bool:
        """Whether the run computes on a CPU. Presets are named after GPUs, so it mentions none."""
        return self.target.device == "cpu"

    @property
    def shown(self) -> list[Plan]:
        """The plans to show to a reader: on a CPU only that of the run."""
        return [self.chosen or self.plans[0]] if self.on_cpu else self.plans


@torch_state()
def plan_all(settings: Settings, target: Target) -> Planned:
    """Plan a run with every preset. Raises DitflowError for settings that a run would refuse."""
    for kind in settings.weight_kinds:
        check_weights(kind)
        check_compute(settings.compute, kind, settings.engine, getattr(torch, settings.dtype))
    check_blocks(settings, len(phases_of(settings, target.device).block_bytes))
    plans = make_plans(settings, presets(), target.device, target.budget)
    chosen, verdict = _choose(settings, target, plans)
    notes = [] if settings.step_threshold is None else [STEP_CACHE]
    if len(family_of(settings.model).experts) > 1:
        notes.append(EXPERTS)
    return Planned(target, plans, chosen, verdict, " ".join([*notes, *attention_kernels(settings)]))


def _choose(settings: Settings, target: Target, plans: list[Plan]) -> tuple[Plan | None, str]:
    """The plan that a run would take, if there is one, and whether it fits, in words."""
    if target.budget is None:
        return None, _cards_that_fit(plans)
    name = asked_preset(settings)
    try:
        chosen = pick_plan(plans, name)
    except DitflowError as error:
        message = str(error)
        return None, f"{message[0].upper()}{message[1:]}."
    takes = f"{size_in_words(chosen.largest.peak_bytes)} of {size_in_words(chosen.budget)}"
    if target.device == "cpu":
        return chosen, f"It fits: on the CPU it takes {takes}, with {chosen.preset.checkpointing}."
    reason = "as requested" if name else "the fastest that fits"
    return chosen, f"It fits: {chosen.preset.name} is chosen, {reason}, and takes {takes} on the GPU."


def _cards_that_fit(plans: list[Plan]) -> str:
    fitting = [plan.preset for plan in plans if plan.fits]
    if not fitting:
        return f"It fits no card: on the largest, {excess_in_words(plans[-1])}."
    return (
        f"It fits GPUs of {fitting[0].gigabytes} GB or more ({fitting[0].name}). No preset is chosen, as "
        "this machine has no GPU: give --memory GB or --estimate-on NAME."
    )


def time_in_words(planned: Planned, ceilings: Ceilings | None) -> str:
    """The least time of the run, or how to have it estimated; nothing if it does not fit."""
    if ceilings is None:
        names = ", ".join(shipped_names("devices"))
        return f"Its time is not estimated: give --estimate-on with one of {names}."
    if planned.chosen is None:
        return ""
    least = duration(ceilings.run_seconds(planned.chosen))
    return f"It takes at least {least} on {ceilings.device} ({ceilings.kind} rates)."


def attention_kernels(settings: Settings) -> list[str]:
    """A sentence on what the plan does not show; none if all attention is `sdpa`, which plans assume."""
    forward = settings.attention_without_gradient
    if settings.attention == forward == "sdpa":
        return []
    return [
        f"Attention is {forward} in forwards without gradient and {settings.attention} in the others; memory "
        "and times are planned with sdpa."
    ]
