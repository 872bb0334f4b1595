"""`make bench` and its control: what fails, and what is written down. Most times are made up."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from math import inf

import pytest
from repository import ROOT
from stand_in_meters import Machine

from bench.timed import test_ratios as command
from bench.timed.bounds import Bound, accepted
from bench.timed.contests import OURS, Contest, play

TIGHT = {("it", "rival"): Bound(2.4, 3.7, ""), ("it", "compiled"): Bound(0.8, 1.3, "")}
WIDE = {("it", "rival"): Bound(0.1, 30.0, ""), ("it", "compiled"): Bound(0.1, 30.0, "")}


def broken():
    raise RuntimeError("no such header")


@pytest.fixture
def judge(monkeypatch):
    """Judges one contest: ours takes some seconds, a rival six, a compiled one two."""
    monkeypatch.setattr(command, "can_compile", lambda: True)
    monkeypatch.setattr(command, "commit", lambda: "0123456789")

    def run(expect, bounds, ours=2.0, fails=()):
        machine, found = Machine(), []
        contest = Contest(
            "it",
            "small",
            lambda: {OURS: lambda: machine.work(OURS, ours), "rival": lambda: machine.work("rival", 6.0)},
            lambda: (
                {"compiled": lambda: machine.work("compiled", 2.0)} | dict.fromkeys(fails, lambda: broken)
            ),
        )
        monkeypatch.setattr(command, "play", partial(play, clock=machine.clock))
        command.test_ratio(contest, machine, bounds, found, expect)
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


def test_the_control_fails_if_nothing_is_noticed(judge):
    found = judge("slowdown", TIGHT)
    assert found["ratios"] == {"rival": pytest.approx(2)}, "compiled rivals are left out"
    unsteady = TIGHT | {("it", "rival"): Bound(0.0, inf, "")}
    assert set(judge("slowdown", unsteady)["ratios"]) == {"rival", "compiled"}, "unless they are needed"
    for blind in (WIDE, dict.fromkeys(TIGHT, Bound(0.0, inf, "")), {}):
        with pytest.raises(AssertionError, match="it: ours did 1.5 times its work and broke no bound"):
            judge("slowdown", blind)


def test_setting_bounds_needs_none(judge):
    assert judge("nothing", {}, ours=50.0)["ratios"]["rival"] == pytest.approx(0.12)


def test_what_does_not_compile_is_left_out(judge):
    with pytest.warns(UserWarning, match="it: other does not compile: no such header"):
        assert set(judge("nothing", {}, fails=["other"])["ratios"]) == {"rival", "compiled"}


CONTEST = """
import time
from functools import partial
from bench.timed import contests

def sides():
    return {"ours": lambda: partial(time.sleep, 0.002), "rival": lambda: partial(time.sleep, 0.02)}

contests.contests = lambda: [contests.Contest("it", "small", sides)]
"""


@pytest.mark.parametrize(
    "expect, status, says",
    [([], 1, "it against rival: ratio .* has no bounds"), (["--expect", "nothing"], 0, "1 passed")],
    ids=["bounds", "nothing"],
)
def test_the_command(expect, status, says, tmp_path):
    """pytest with pytest-benchmark, as in the Makefile, for one short contest."""
    (tmp_path / "one_contest.py").write_text(CONTEST)
    file = tmp_path / "found.json"
    words = ["-p", "one_contest", "-q", "bench/timed", *expect, f"--benchmark-json={file}"]
    start = f"import sys, pytest; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]; "
    done = subprocess.run(
        [sys.executable, "-c", f"{start}sys.exit(pytest.main(sys.argv[1:]))", *words],
        cwd=ROOT,
        # pytest-benchmark measures nothing in a worker of xdist
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert re.search(says, done.stdout) and re.search(r"\| it \| [\d.]+ \| rival \|", done.stdout)
    bounds, results = accepted([json.loads(file.read_text())])
    (row,) = results["contests"]
    assert results["device"] and results["date"] and row["threads"] == 1
    assert row["ratios"]["rival"] > 1 and ("it", "rival") in bounds
