"""How a model's plan is said on the page, and the order in which models are planned."""

from dataclasses import dataclass

import pytest

from ditflow.app import fits
from ditflow.app.fits import PLANNING, Choice, Planner
from ditflow.memory.presets import GIB
from ditflow.settings import read_settings


@dataclass
class StandInPhase:
    peak_bytes: int


@dataclass
class StandInPlan:
    largest: StandInPhase
    budget: int

    @property
    def fits(self):
        return self.largest.peak_bytes <= self.budget


@pytest.mark.parametrize(
    "needed, seconds, expected",
    [
        (3.2, None, "needs 3.2 of 11.4 GiB"),
        (3.2, 130, "needs 3.2 of 11.4 GiB, at least 2 min"),
        (12.6, 130, "does not fit: 1.2 GiB over"),
    ],
)
def test_a_plan_in_words(needed, seconds, expected):
    plan = StandInPlan(StandInPhase(int(needed * GIB)), int(11.4 * GIB))
    assert fits.fit_text(plan, seconds) == expected


def test_the_small_model_is_planned():
    settings = read_settings(model="small", frames=9)
    assert fits.planned_fit(settings, "cpu", 8 * GIB).endswith("of 8.0 GiB")
    assert fits.planned_fit(settings, "cpu", 0).startswith("does not fit: ")
    assert ", at least " in fits.planned_fit(settings, "cuda", 80 * GIB, "NVIDIA H200")


def test_a_large_model_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fits.fit(fits.default_choice("wan-1.3b")) == "needs a CUDA GPU, and this machine has none"


def test_settings_that_are_refused():
    assert fits.fit(Choice("small", "exact", 0)) == "frames: 0 given, at least 1 accepted"


def test_the_choice_on_the_page_is_planned_first_and_each_once():
    asked = []
    planner = Planner(lambda choice: asked.append(choice) or f"needs {len(asked)}")
    wanted = Choice("5b", "fast", 49)
    assert planner.text(wanted) == PLANNING
    while planner.work():
        pass
    assert asked[0] == wanted and planner.text(wanted) == "needs 1"
    assert asked[1].model.startswith("small")  # what needs no download comes first
    labels = planner.labels()
    assert len(asked) == len(set(asked)) == len(labels) + 1
    assert labels[0] == (f"{asked[1].model}: needs 2", asked[1].model)
