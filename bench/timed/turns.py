"""One side of `python -m bench.compare`: times this tree's own code when it is asked to.

Reads a line, answers with a line of JSON: first, unasked, the sizes of its contests by name; then, for a
contest's name, the seconds of one turn at it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator

from bench.timed.contest import CALLS, OURS, Call, repeat
from bench.timed.contests import CONTESTS
from bench.timed.steady import steady


def answers(asked: Iterable[str]) -> Iterator[str]:
    contests = {contest.name: contest for contest in CONTESTS}
    yield json.dumps({name: contest.size for name, contest in contests.items()})
    playing: dict[str, Call] = {}
    for line in asked:
        name = line.strip()
        if name not in playing:
            playing = {name: contests[name].sides()[OURS]}  # the one before is done with
            playing[name]()  # loads what stays loaded
        start = time.perf_counter()
        repeat(playing[name], CALLS)
        yield json.dumps(time.perf_counter() - start)


def main() -> None:
    steady()
    for answer in answers(sys.stdin):
        print(answer, flush=True)


if __name__ == "__main__":
    main()
