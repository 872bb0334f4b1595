"""Says how a model fits this machine, from its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ditflow.app.words import NO_FIT
from ditflow.errors import DitflowError
from ditflow.memory.presets import GIB, presets
from ditflow.models.families import known_model
from ditflow.progress import duration
from ditflow.settings import Settings, read_settings
from ditflow.settings.settings import model_settings

if TYPE_CHECKING:
    from ditflow.planning.ceilings import Ceilings
    from ditflow.planning.plan import Plan
    from ditflow.planning.verdict import Target


class Choice(NamedTuple):
    """What a plan depends on."""

    model: str
    speed: str
    frames: int

    def settings(self) -> Settings:
        """Raises SettingsError for values that are not accepted."""
        return read_settings(model=self.model, speed=self.speed, frames=self.frames)


class Place(NamedTuple):
    """Where a model would run."""

    target: Target
    rates: Ceilings | None  # None: unknown


def default_choice(model: str) -> Choice:
    """A model with its own number of frames, exact."""
    return Choice(model, "exact", default_frames(model))


def default_frames(model: str) -> int:
    return model_settings(model, "exact")["frames"]


def is_shipped(model: str) -> bool:
    """Whether a model needs no download."""
    return "package_folder" in known_model(model)["weights"]


def place_of(model: str) -> Place | str:
    """Where a model would run on this machine, with the memory that is free now; if it cannot, why."""
    from ditflow.jobs.device import device_name
    from ditflow.jobs.plan import plan_target

    settings = default_choice(model).settings()
    try:
        device_name(settings)
        return Place(*plan_target(settings))
    except DitflowError as error:
        return reason(error, model)


def fit(choice: Choice, place: Place) -> str:
    """How a choice fits a place, by the fastest preset that fits. Takes up to some seconds."""
    from ditflow.memory.torch_state import torch_state
    from ditflow.planning.choice import make_plans

    target, fastest_first = place.target, presets()[::-1]
    try:
        with torch_state():
            settings = choice.settings()
            *_, plan = make_plans(settings, fastest_first, target.device, target.budget, until_one_fits=True)
    except DitflowError as error:
        return reason(error, choice.model)
    return fit_text(plan, place.rates.run_seconds(plan) if place.rates else None)


def fit_text(plan: Plan, seconds: float | None = None) -> str:
    """`needs 3.2 of 11.4 GiB, at least 2.0 minutes`, or `does not fit: 1.2 GiB over`."""
    needed = plan.largest.peak_bytes
    if not plan.fits:
        return f"{NO_FIT}: {(needed - plan.budget) / GIB:.1f} GiB over"
    time = "" if seconds is None else f", at least {duration(seconds)}"
    return f"needs {needed / GIB:.1f} of {plan.budget / GIB:.1f} GiB{time}"


def reason(error: DitflowError, model: str) -> str:
    """An error's message without the model's name and without what to do."""
    return str(error).partition(";")[0].removeprefix(f"model {model} ")
