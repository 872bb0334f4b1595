"""Times every contest and checks its ratios: `pytest bench/timed [--expect ...]`, see `make bench`."""

import os
import warnings
from typing import Any

import pytest
import torch

from bench.harness import CPU, Call, commit
from bench.timed.bounds import SLOWDOWN, Bounds, binds, broken, caught
from bench.timed.contests import Contest, contests, play
from ditflow.errors import DitflowError
from ditflow.models.compiling import compiles


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.name)
def test_ratio(contest: Contest, benchmark: Any, bounds: Bounds, found: list[dict], expect: str) -> None:
    name, load, planted = contest.name, os.getloadavg()[0], expect == "slowdown"
    sides = {side: make() for side, make in contest.sides().items()}
    # compiling takes long, and the control needs only one rival whose bound can break
    if not (planted and any(binds(name, rival, bounds) for rival in sides)) and can_compile():
        sides |= compiled(contest)
    seconds, ratios = play(sides, benchmark, planted)
    torch._dynamo.reset()
    benchmark.extra_info |= {
        "name": name,
        "size": contest.size,
        "seconds": seconds,
        "ratios": ratios,
        "load": [load, os.getloadavg()[0]],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }
    found.append(benchmark.extra_info)
    if expect == "bounds":
        assert not (lines := broken(name, ratios, bounds)), "\n".join(lines)
    if planted:
        assert caught(name, ratios, bounds), (
            f"{name}: ours did {SLOWDOWN} times its work and broke no bound; ratios {ratios}"
        )


def compiled(contest: Contest) -> dict[str, Call]:
    """The rivals by torch.compile. One that does not compile takes no part."""
    made = {}
    for name, make in contest.compiled().items():
        try:
            made[name] = make()
            made[name]()
        except Exception as error:
            made.pop(name, None)
            warnings.warn(f"{contest.name}: {name} does not compile: {error}", stacklevel=1)
    return made


def can_compile() -> bool:
    try:
        return compiles("on", CPU)
    except DitflowError:
        return False
