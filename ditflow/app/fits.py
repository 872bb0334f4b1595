"""Plans what the models of the form need on this machine, one after the other, while no run needs the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ditflow.app.words import NO_FIT, duration
from ditflow.errors import DitflowError, SettingsError
from ditflow.memory.presets import GIB
from ditflow.models.families import known_model, models
from ditflow.settings import Settings, read_settings
from ditflow.settings.settings import model_settings

if TYPE_CHECKING:
    from ditflow.planning.plan import Plan

PLANNING = "being planned"


class Choice(NamedTuple):
    """What a plan depends on."""

    model: str
    speed: str
    frames: int

    def settings(self) -> Settings:
        """Raises SettingsError for values that are not accepted."""
        return read_settings(model=self.model, speed=self.speed, frames=self.frames)


def default_choice(model: str) -> Choice:
    """A model with its own number of frames, exact."""
    return Choice(model, "exact", default_frames(model))


def default_frames(model: str) -> int:
    return model_settings(model, "exact")["frames"]


class Planner:
    """Finds the fit of each choice once. The one on the page comes first, then each model by itself."""

    def __init__(self, plan: Callable[[Choice], str] | None = None):
        self._plan = plan or fit
        self._lock = threading.Lock()
        self._found: dict[Choice, str] = {}
        self._shown: Choice | None = None
        by_need = sorted(models(), key=lambda name: (not is_shipped(name), name))
        self._others = [default_choice(name) for name in by_need]

    def text(self, choice: Choice) -> str:
        """How the choice on the page fits; as long as it is unknown, that it is being planned."""
        with self._lock:
            self._shown = choice
            return self._found.get(choice, PLANNING)

    def labels(self) -> list[tuple[str, str]]:
        """Each model, with how it fits where that is known, and its name."""
        with self._lock:
            found = ((choice.model, self._found.get(choice, PLANNING)) for choice in self._others)
            return [(f"{model}: {text}", model) for model, text in found]

    def work(self) -> bool:
        """Plan one choice; False if all are planned."""
        with self._lock:
            wanted = [*([self._shown] if self._shown else []), *self._others]
            choice = next((each for each in wanted if each not in self._found), None)
        if choice is None:
            return False
        text = self._plan(choice)
        with self._lock:
            self._found[choice] = text
        return True


def is_shipped(model: str) -> bool:
    """Whether a model needs no download."""
    return "package_folder" in known_model(model)["weights"]


def fit(choice: Choice) -> str:
    """How a choice fits this machine, from its plan. Takes up to some seconds."""
    import torch

    from ditflow.jobs.device import choose_device
    from ditflow.memory.capacity import usable_bytes

    try:
        settings = choice.settings()
        device = choose_device(settings)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        return planned_fit(settings, device.type, usable_bytes(settings.memory, device), name)
    except DitflowError as error:
        return str(error).partition(";")[0].removeprefix(f"model {choice.model} ")


def planned_fit(settings: Settings, device: str, budget: int, gpu: str = "") -> str:
    """How a run fits into a budget of bytes on a kind of device; `gpu`: its name, if it is one."""
    from ditflow.memory.presets import presets
    from ditflow.memory.torch_state import torch_state
    from ditflow.planning.choice import make_plans

    with torch_state():
        plan = make_plans(settings, presets()[::-1], device, budget, until_one_fits=True)[-1]
    return fit_text(plan, least_seconds(settings, plan, gpu))


def fit_text(plan: Plan, seconds: float | None = None) -> str:
    """`needs 3.2 of 11.4 GiB, at least 2 min`, or `does not fit: 1.2 GiB over`."""
    needed = plan.largest.peak_bytes
    if not plan.fits:
        return f"{NO_FIT}: {(needed - plan.budget) / GIB:.1f} GiB over"
    time = "" if seconds is None else f", at least {duration(seconds)}"
    return f"needs {needed / GIB:.1f} of {plan.budget / GIB:.1f} GiB{time}"


def least_seconds(settings: Settings, plan: Plan, gpu: str) -> float | None:
    """The least time of a run, if the GPU's rates are known."""
    from ditflow.planning.ceilings import ceilings_of_card

    ceilings = ceilings_of_card(gpu)
    if ceilings is None:
        return None
    try:
        ceilings.check_compute(settings.compute)
    except SettingsError:  # it has no rate for these products
        return None
    return ceilings.run_seconds(plan)
