"""Every contest once: `make bench`, `make bench-control`, `make bench-accept-ratios`."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from bench.revision import commit
from bench.timed.bounds import Bounds, binds, broken, caught
from bench.timed.contest import CALLS, SLOWDOWN, Call, Contest, play
from bench.timed.contests import CONTESTS
from ditflow.errors import DitflowError
from ditflow.models.compiling import compiles


@pytest.mark.parametrize("contest", CONTESTS, ids=lambda contest: contest.name)
def test_ratio(contest: Contest, benchmark, bounds: Bounds, found: list[dict], request) -> None:
    expect = request.config.getoption("--expect")
    load = os.getloadavg()[0]
    sides = dict(contest.sides())
    quick = any(binds(contest.name, rival, bounds) for rival in sides)  # a rival that needs no compiling
    if not (expect == "slowdown" and quick) and can_compile():
        sides |= compiled(contest)
    played = play(sides, benchmark, planted=expect == "slowdown")
    benchmark.extra_info |= {
        "name": contest.name,
        "size": contest.size,
        "seconds": played.seconds / CALLS,
        "ratios": played.ratios,
        "load": [load, os.getloadavg()[0]],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }
    found.append(benchmark.extra_info)
    torch._dynamo.reset()
    if expect == "bounds":
        assert not (lines := broken(contest.name, played.ratios, bounds)), "\n".join(lines)
    if expect == "slowdown":
        assert caught(contest.name, played.ratios, bounds), (
            f"{contest.name}: ours did {SLOWDOWN} times its work and broke no bound; ratios {played.ratios}"
        )


def compiled(contest: Contest) -> dict[str, Call]:
    """The rivals that torch.compile makes; what it cannot make competes with nobody."""
    made = {}
    for name, call in contest.compiled().items():
        try:
            call()
        except Exception as error:
            warnings.warn(f"{contest.name}: {name} does not compile: {error}", stacklevel=1)
        else:
            made[name] = call
    return made


def can_compile() -> bool:
    try:
        return compiles("on", torch.device("cpu"))
    except DitflowError:
        return False
