"""This tree's code against a revision's: `python -m bench.compare REVISION [--margin 0.15]`.

The revision gets a git worktree of its own for a while. A process for each side times ours in every contest
of `bench.timed`, in turns, so that what else the machine does falls on both. Exit status 1 where this tree
takes longer by more than the margin.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIDE = Path("bench") / "timed" / "turns.py"
ROUNDS = 9
MARGIN = 0.15  # of the time


class CannotCompare(Exception):
    """There is nothing to compare with."""


class Side:
    """A process that times one tree's code when asked (`bench.timed.turns`)."""

    def __init__(self, name: str, process: subprocess.Popen):
        self.name, self.process = name, process
        self.sizes: dict[str, str] = self._answer()  # of its contests

    def seconds(self, contest: str) -> float:
        with suppress(BrokenPipeError):  # the answer will tell
            self.process.stdin.write(f"{contest}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise CannotCompare(f"{self.name}: its benchmarks ended with status {self.process.wait()}")
        return json.loads(line)


@contextmanager
def worktree(revision: str, repository: Path = ROOT) -> Iterator[Path]:
    """The revision's files in a folder that is gone afterwards, whatever happens.

    Raises CannotCompare for a revision that is not there or that has no such benchmarks.
    """
    found = git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        raise CannotCompare(f"{revision}: no such revision here; accepted: a commit, a branch or a tag")
    commit = found.stdout.strip()
    if git(repository, "cat-file", "-e", f"{commit}:{SIDE.as_posix()}").returncode:
        raise CannotCompare(f"{revision}: has no timed benchmarks ({SIDE}); name a later revision")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        try:
            added = git(repository, "worktree", "add", "--detach", str(tree), commit)
            if added.returncode:
                raise CannotCompare(f"{revision}: no worktree: {added.stderr.strip().splitlines()[-1]}")
            # an installation from a checkout finds `ditflow.configs` there, unless it is here
            (tree / "ditflow" / "configs").symlink_to(tree / "configs")
            yield tree
        finally:
            git(repository, "worktree", "remove", "--force", str(tree))
            git(repository, "worktree", "prune")


def git(repository: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True)


@contextmanager
def side_of(tree: Path, name: str) -> Iterator[Side]:
    """A tree's process; all that it imports of the project is that tree's."""
    places = [str(tree), str(tree / "kernels"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.timed.turns"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Side(name, process)
    finally:
        process.kill()
        process.communicate()


def compared(base: Side, head: Side, rounds: int = ROUNDS) -> Iterator[tuple[str, float | str]]:
    """Of each contest: how many times the base's time this tree takes, or why that is not known."""
    for name, size in head.sizes.items():
        if name not in base.sizes:
            yield name, "not in the base"
        elif base.sizes[name] != size:
            yield name, f"another size in the base: {base.sizes[name]}"
        else:
            pairs = [(base.seconds(name), head.seconds(name)) for _ in range(rounds)]
            yield name, statistics.median(ours / before for before, ours in pairs)


def verdict(found: Sequence[tuple[str, float | str]], margin: float) -> list[str]:
    """The contests in which this tree takes too long."""
    return [name for name, ratio in found if not isinstance(ratio, str) and ratio > 1 + margin]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="what to compare with: a commit, a branch or a tag")
    parser.add_argument("--margin", type=float, default=MARGIN, help="how much longer is still well")
    options = parser.parse_args(arguments)
    found = []
    try:
        with ExitStack() as stack:
            tree = stack.enter_context(worktree(options.revision))
            base = stack.enter_context(side_of(tree, options.revision))
            head = stack.enter_context(side_of(ROOT, "this tree"))
            print(f"| contest | time, as a multiple of {options.revision}'s |\n| --- | --- |", flush=True)
            for name, ratio in compared(base, head):
                found.append((name, ratio))
                cell = ratio if isinstance(ratio, str) else f"{ratio:.2f}"
                print(f"| {name} | {cell} |", flush=True)
    except CannotCompare as error:
        raise SystemExit(f"bench.compare: {error}") from None
    if slower := verdict(found, options.margin):
        raise SystemExit(f"bench.compare: slower by more than {options.margin:.0%}: {', '.join(slower)}")


if __name__ == "__main__":
    main()
