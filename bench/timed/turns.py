"""One side of `python -m bench.compare`: times this tree's own code on request.

First prints the sizes of its contests by name. Then reads a contest's name a line and prints the seconds of
one turn. All answers are JSON, a line each.
"""

import json
import sys
from collections.abc import Iterable, Iterator

from bench.harness import Call, seconds, steady
from bench.timed.bounds import CALLS
from bench.timed.contests import OURS, contests


def answers(asked: Iterable[str]) -> Iterator[str]:
    known = {contest.name: contest for contest in contests()}
    yield json.dumps({name: contest.size for name, contest in known.items()})
    ready: dict[str, Call] = {}
    for name in map(str.strip, asked):
        if name not in ready:
            ready = {name: known[name].sides()[OURS]()}  # drops the contest before
            ready[name]()  # loads what stays loaded
        yield json.dumps(seconds(ready[name], CALLS))


def main() -> None:
    steady()
    for answer in answers(sys.stdin):
        print(answer, flush=True)


if __name__ == "__main__":
    main()
