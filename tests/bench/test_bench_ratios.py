"""`make bench` and its control: what fails, and what is written down. Times are made up."""

import json
from functools import partial
from math import inf

import pytest
from stand_in_meters import Machine

from bench.timed import __main__ as command
from bench.timed.bounds import Bound
from bench.timed.contests import OURS, Contest, play

TIGHT = {("it", "rival"): Bound(2.4, 3.7, ""), ("it", "compiled"): Bound(0.8, 1.3, "")}
WIDE = {("it", "rival"): Bound(0.1, 30.0, ""), ("it", "compiled"): Bound(0.1, 30.0, "")}


def broken():
    raise RuntimeError("no such header")


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """Runs the command for one contest: ours takes some seconds, a rival six, a compiled one two."""
    monkeypatch.setattr(command, "can_compile", lambda: True)
    monkeypatch.setattr(command, "commit", lambda: "0123456789")
    monkeypatch.setattr(command, "steady", lambda: None)

    def run(expect, bounds, ours=2.0, fails=(), words=()):
        machine, file = Machine(), tmp_path / "found.json"
        contest = Contest(
            "it",
            "small",
            lambda: {OURS: lambda: machine.work(OURS, ours), "rival": lambda: machine.work("rival", 6.0)},
            lambda: (
                {"compiled": lambda: machine.work("compiled", 2.0)} | dict.fromkeys(fails, lambda: broken)
            ),
        )
        monkeypatch.setattr(command, "contests", lambda: [contest])
        monkeypatch.setattr(command, "read_bounds", lambda: bounds)
        monkeypatch.setattr(command, "play", partial(play, clock=machine.clock))
        command.main(["--expect", expect, "--json", str(file), *words])
        results = json.loads(file.read_text())
        assert results["kind"] == "cpu" and results["device"] and results["date"]
        (row,) = results["contests"]
        return row

    return run


def test_within_bounds(judge, capsys):
    found = judge("bounds", TIGHT)
    assert found["ratios"] == {"rival": pytest.approx(3), "compiled": pytest.approx(1)}
    assert (found["name"], found["size"], found["seconds"]) == ("it", "small", 2.0)
    assert found["threads"] >= 1 and len(found["load"]) == 2 and found["commit"] == "0123456789"
    assert "| it | 2000.0 | rival | 3.00 | 2.4 to 3.7 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "ours, says", [(3.0, "ours has become slower"), (1.0, "ours has become faster"), (2.0, "has no bounds")]
)
def test_beyond_bounds(judge, ours, says, capsys):
    with pytest.raises(SystemExit, match=f"it against rival: ratio .*{says}"):
        judge("bounds", {} if ours == 2.0 else TIGHT, ours)
    assert "| it |" in capsys.readouterr().out, "the table is printed all the same"


def test_the_control_fails_if_nothing_is_noticed(judge):
    found = judge("slowdown", TIGHT)
    assert found["ratios"] == {"rival": pytest.approx(2)}, "compiled rivals are left out"
    unsteady = TIGHT | {("it", "rival"): Bound(0.0, inf, "")}
    assert set(judge("slowdown", unsteady)["ratios"]) == {"rival", "compiled"}, "unless they are needed"
    for blind in (WIDE, dict.fromkeys(TIGHT, Bound(0.0, inf, "")), {}):
        with pytest.raises(SystemExit, match="it: ours did 1.5 times its work and broke no bound"):
            judge("slowdown", blind)


def test_setting_bounds_needs_none(judge):
    assert judge("nothing", {}, ours=50.0)["ratios"]["rival"] == pytest.approx(0.12)


def test_what_does_not_compile_is_left_out(judge, capsys):
    assert set(judge("nothing", {}, fails=["other"])["ratios"]) == {"rival", "compiled"}
    assert "it: other does not compile: no such header" in capsys.readouterr().err


def test_some_contests(judge, capsys):
    assert judge("nothing", {}, words=["--only", "i"])["name"] == "it"
    with pytest.raises(SystemExit):
        judge("nothing", {}, words=["--only", "flow"])
    assert "--only flow: contests are it" in capsys.readouterr().err
