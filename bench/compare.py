"""Times this tree's code against a revision's: `python -m bench.compare REVISION [--margin 0.15]`.

The revision gets a temporary git worktree. A process for each side times ours in every contest of
`bench.timed`, in turns, so that other load slows both. Exit status 1 if this tree is slower by more than the
margin.
"""

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

from bench.tables import line

ROOT = Path(__file__).parents[1]
SIDE = Path("bench") / "timed" / "turns.py"
ROUNDS = 9
MARGIN = 0.15  # of the time


class CannotCompare(Exception):
    """The revision cannot be timed."""


class Side:
    """A process that times one tree's code on request (`bench.timed.turns`)."""

    def __init__(self, name: str, process: subprocess.Popen):
        self.name, self.process = name, process
        self.sizes: dict[str, str] = self._answer()  # of its contests

    def seconds(self, contest: str) -> float:
        with suppress(BrokenPipeError):  # then there is no answer
            self.process.stdin.write(f"{contest}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        raise CannotCompare(f"{self.name}: its benchmarks ended with status {self.process.wait()}")


@contextmanager
def worktree(revision: str, repository: Path = ROOT) -> Iterator[Path]:
    """The revision's files in a temporary folder.

    Raises CannotCompare for a revision that does not exist or has no timed benchmarks.
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
            # otherwise an installation from a checkout would find that checkout's `ditflow.configs`
            (tree / "ditflow" / "configs").symlink_to(tree / "configs")
            yield tree
        finally:
            git(repository, "worktree", "remove", "--force", str(tree))
            git(repository, "worktree", "prune")


def git(repository: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True)


@contextmanager
def side_of(tree: Path, name: str) -> Iterator[Side]:
    """A tree's process; it imports the project from that tree only."""
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
    """For each contest, this tree's time as a multiple of the base's, or why it is unknown."""
    for name, size in head.sizes.items():
        if name not in base.sizes:
            yield name, "not in the base"
        elif base.sizes[name] != size:
            yield name, f"another size in the base: {base.sizes[name]}"
        else:
            pairs = [(base.seconds(name), head.seconds(name)) for _ in range(rounds)]
            yield name, statistics.median(ours / before for before, ours in pairs)


def verdict(found: Sequence[tuple[str, float | str]], margin: float) -> list[str]:
    """The contests in which this tree is too slow."""
    return [name for name, ratio in found if not isinstance(ratio, str) and ratio > 1 + margin]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="a commit, a branch or a tag to compare with")
    parser.add_argument(
        "--margin", type=float, default=MARGIN, help="how much slower is accepted, as a share"
    )
    options = parser.parse_args(arguments)
    found = []
    try:
        with ExitStack() as stack:
            tree = stack.enter_context(worktree(options.revision))
            base = stack.enter_context(side_of(tree, options.revision))
            head = stack.enter_context(side_of(ROOT, "this tree"))
            print(line(["contest", f"time, as a multiple of {options.revision}'s"]), flush=True)
            print(line(["---", "---"]), flush=True)
            for name, ratio in compared(base, head):
                found.append((name, ratio))
                print(line([name, ratio if isinstance(ratio, str) else f"{ratio:.2f}"]), flush=True)
    except CannotCompare as error:
        raise SystemExit(f"bench.compare: {error}") from None
    if slower := verdict(found, options.margin):
        raise SystemExit(f"bench.compare: slower by more than {options.margin:.0%}: {', '.join(slower)}")


if __name__ == "__main__":
    main()
