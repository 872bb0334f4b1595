"""How a model's plan is said on the page."""

from dataclasses import dataclass

import pytest

from ditflow.app import fits
from ditflow.app.fits import Choice, Place
from ditflow.memory.presets import GIB
from ditflow.planning.ceilings import read_ceilings
from ditflow.planning.verdict import Target

SMALL = Choice("small", "exact", 9)


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
        (3.2, 130, "needs 3.2 of 11.4 GiB, at least 2.2 minutes"),
        (12.6, 130, "does not fit: 1.2 GiB over"),
    ],
)
def test_a_plan_in_words(needed, seconds, expected):
    plan = StandInPlan(StandInPhase(int(needed * GIB)), int(11.4 * GIB))
    assert fits.fit_text(plan, seconds) == expected


def test_the_small_model_is_planned():
    assert fits.fit(SMALL, Place(Target("cpu", 8 * GIB), None)).endswith("of 8.0 GiB")
    assert fits.fit(SMALL, Place(Target("cpu", 0), None)).startswith("does not fit: ")
    assert ", at least " in fits.fit(SMALL, Place(Target("cuda", 80 * GIB), read_ceilings("h200")))


def test_places_on_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fits.place_of("wan-1.3b") == "needs a CUDA GPU, and this machine has none"
    target, rates = fits.place_of("small")
    assert (target.device, rates) == ("cpu", None) and target.budget > 0


def test_settings_that_are_refused():
    refused = fits.fit(Choice("small", "exact", 0), Place(Target("cpu", GIB), None))
    assert refused == "frames: 0 given, at least 1 accepted"
