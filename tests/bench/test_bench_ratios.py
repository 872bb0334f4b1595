"""`make bench` and its control: what fails, and what is written down. Times are made."""

from functools import partial
from math import inf
from types import SimpleNamespace

import pytest
from stand_in_meters import Machine

from bench.timed import test_ratios as command
from bench.timed.bounds import Bound
from bench.timed.contest import OURS, Contest, play

TIGHT = {("it", "rival"): Bound(2.4, 3.7, ""), ("it", "compiled"): Bound(0.8, 1.3, "")}
WIDE = {("it", "rival"): Bound(0.1, 30.0, ""), ("it", "compiled"): Bound(0.1, 30.0, "")}


def broken():
    raise RuntimeError("no such header")


@pytest.fixture
def judge(monkeypatch):
    """One contest: ours takes some seconds, a rival six, a compiled one two."""
    monkeypatch.setattr(command, "can_compile", lambda: True)
    monkeypatch.setattr(command, "commit", lambda: "0123456789")

    def run(expect, bounds, ours=2.0, fails=()):
        machine, found = Machine(), []
        machine.extra_info = {}
        monkeypatch.setattr(command, "play", partial(play, clock=machine.clock))
        contest = Contest(
            "it",
            "small",
            lambda: {OURS: machine.work(OURS, ours), "rival": machine.work("rival", 6.0)},
            lambda: {"compiled": machine.work("compiled", 2.0)} | dict.fromkeys(fails, broken),
        )
        request = SimpleNamespace(config=SimpleNamespace(getoption=lambda name: expect))
        command.test_ratio(contest, machine, bounds, found, request)
        assert found == [machine.extra_info]
        return machine.extra_info

    return run


def test_within_bounds(judge):
    found = judge("bounds", TIGHT)
    assert found["ratios"] == {"rival": pytest.approx(3), "compiled": pytest.approx(1)}
    assert (found["name"], found["size"], found["seconds"]) == ("it", "small", 2.0)
    assert found["threads"] >= 1 and len(found["load"]) == 2 and found["commit"] == "0123456789"


@pytest.mark.parametrize(
    "ours, says", [(3.0, "ours has become slower"), (1.0, "ours has become faster"), (2.0, "has no bounds")]
)
def test_beyond_bounds(judge, ours, says):
    with pytest.raises(AssertionError, match=f"it against rival: ratio .*{says}"):
        judge("bounds", {} if ours == 2.0 else TIGHT, ours)


def test_the_control_fails_where_nothing_is_noticed(judge):
    found = judge("slowdown", TIGHT)
    assert found["ratios"] == {"rival": pytest.approx(2)}, "compiled rivals are left out"
    unsteady = TIGHT | {("it", "rival"): Bound(0.0, inf, "")}
    assert set(judge("slowdown", unsteady)["ratios"]) == {"rival", "compiled"}, "where another one will do"
    for blind in (WIDE, dict.fromkeys(TIGHT, Bound(0.0, inf, "")), {}):
        with pytest.raises(AssertionError, match="it: ours did 1.5 times its work and broke no bound"):
            judge("slowdown", blind)


def test_setting_bounds_asks_for_none(judge):
    assert judge("nothing", {}, ours=50.0)["ratios"]["rival"] == pytest.approx(0.12)


def test_what_does_not_compile_is_left_out(judge):
    with pytest.warns(UserWarning, match="it: other does not compile: no such header"):
        assert set(judge("nothing", {}, fails=["other"])["ratios"]) == {"rival", "compiled"}
