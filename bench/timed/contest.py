"""A contest: one thing to compute, ours and its rivals, timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OURS = "ours"
ROUNDS = 7
CALLS = 2  # of every side in a round
PLANTED = 3  # of ours, where a slowdown is planted
SLOWDOWN = PLANTED / CALLS

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contest:
    """Something to compute at a size, and who computes it."""

    name: str
    size: str  # in words
    sides: Callable[[], Mapping[str, Call]]  # made when its turn comes; one of them is `OURS`
    compiled: Callable[[], Mapping[str, Call]] = dict  # rivals that torch.compile makes, which takes a while


@dataclass(frozen=True)
class Played:
    """What a contest gave."""

    seconds: float  # the median of our rounds
    ratios: dict[str, float]  # of each rival: how many times our time it takes, the median of the rounds


def play(
    sides: Mapping[str, Call],
    benchmark: Any,  # pytest-benchmark's fixture: it times ours, right after the rivals' turns
    planted: bool = False,  # do half as much again of our own work
    clock: Callable[[], float] = time.perf_counter,
) -> Played:
    """Every side in turn, round after round, so that what else the machine does falls on all of them."""
    rivals = {name: call for name, call in sides.items() if name != OURS}
    for call in sides.values():
        call()  # loads and compiles
    times: dict[str, list[float]] = {name: [] for name in rivals}

    def rivals_turns() -> None:
        for name, call in rivals.items():
            start = clock()
            repeat(call, CALLS)
            times[name].append(clock() - start)

    calls = PLANTED if planted else CALLS
    benchmark.pedantic(repeat, args=(sides[OURS], calls), setup=rivals_turns, rounds=ROUNDS)
    ours = benchmark.stats.stats.data
    return Played(
        statistics.median(ours),
        {
            name: statistics.median(theirs / own for theirs, own in zip(taken, ours, strict=True))
            for name, taken in times.items()
        },
    )


def repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()
