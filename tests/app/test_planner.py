"""Models are planned in another process, each once, and that on the page first."""

import os
import threading
import time
from functools import partial

import pytest

from ditflow.app import planner
from ditflow.app.fits import Choice, Place
from ditflow.app.planner import PLANNING, UNKNOWN, Planner
from ditflow.planning.verdict import Target

WANTED = Choice("5b", "fast", 49)


def stand_in(log, choice, place):
    """A plan; writes down which one, and that it is made in another process at a lower priority."""
    with log.open("a") as file:
        print(choice.model, choice.speed, os.getppid(), os.nice(0), file=file)
    return f"needs {place.target.budget}"


def fatal(choice, place):
    os._exit(1)


@pytest.fixture(autouse=True)
def begin(monkeypatch):
    """Where models run, all but one on this machine; this is known, and planning begins, once it is set."""
    here, begin = Place(Target("cpu", 5), None), threading.Event()

    def place_of(model):
        begin.wait()
        return "needs a GPU" if model == "2b" else here

    monkeypatch.setattr(planner, "place_of", place_of)
    return begin


def labels_of(found):
    """The labels, once all models are planned."""
    deadline = time.monotonic() + 120
    while any(PLANNING in label for label, _ in found.labels()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found.labels()


def test_the_choice_on_the_page_is_planned_first_and_each_once_elsewhere(begin, tmp_path):
    found = Planner(partial(stand_in, tmp_path / "log"))
    try:
        assert found.text(WANTED) == PLANNING
        begin.set()
        labels = labels_of(found)
        assert found.text(WANTED) == "needs 5"
    finally:
        found.close()
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[0][:2] == ["5b", "fast"]
    assert lines[1][0].startswith("small")  # what needs no download comes first
    assert len(lines) == len({tuple(line) for line in lines}) == len(labels)  # not 2b, but 5b twice
    assert all(parent == str(os.getpid()) and int(nice) > os.nice(0) for *_, parent, nice in lines)
    assert labels[0] == (f"{lines[1][0]}: needs 5", lines[1][0]) and ("2b: needs a GPU", "2b") in labels


def test_a_planner_whose_process_has_died_says_so(begin):
    found = Planner(fatal)
    begin.set()
    try:
        labels = dict((model, label) for label, model in labels_of(found))
    finally:
        found.close()
    assert labels["small"] == f"small: {UNKNOWN}" and labels["2b"] == "2b: needs a GPU"


def test_a_planner_can_be_closed_amid_a_plan(begin):
    found = Planner(slow)
    begin.set()
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 60


def slow(choice, place):
    time.sleep(600)
