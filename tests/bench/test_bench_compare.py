"""Comparing with a revision: what is compared, what is refused, what is left behind."""

import json
import subprocess

import pytest

from bench import compare
from bench.compare import CannotCompare, Side, compared, side_of, verdict, worktree
from bench.timed.turns import answers

TURNS = """
import json, sys
print(json.dumps({"flow": "small", "decode": "large"}), flush=True)
from ditflow import pace, configs
for line in sys.stdin:
    print(json.dumps(pace.SECONDS * configs.FACTOR), flush=True)
"""


def git(repository, *words):
    done = subprocess.run(["git", "-C", str(repository), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Three commits: without benchmarks, with them, and with slower code."""
    tree = tmp_path / "repository"
    (tree / "bench" / "timed").mkdir(parents=True)
    (tree / "ditflow").mkdir()
    (tree / "configs").mkdir()
    git(tree.parent, "init", "-q", str(tree))
    git(tree, "config", "user.email", "nobody@example.org")
    git(tree, "config", "user.name", "nobody")

    def commit(name, files):
        for path, text in files.items():
            (tree / path).write_text(text)
        git(tree, "add", "-A")
        git(tree, "commit", "-q", "-m", name)
        git(tree, "tag", name)

    commit("empty", {"ditflow/pace.py": "SECONDS = 2.0", "configs/__init__.py": "FACTOR = 1"})
    for package in ("ditflow", "bench", "bench/timed"):
        (tree / package / "__init__.py").touch()
    commit("old", {"bench/timed/turns.py": TURNS})
    commit("slow", {"ditflow/pace.py": "SECONDS = 3.0"})
    return tree


def test_each_side_times_its_own_code(repository):
    """Also for modules that an installed checkout would import from elsewhere."""
    with (
        worktree("old", repository) as old,
        worktree("slow", repository) as slow,
        side_of(old, "old") as base,
        side_of(slow, "slow") as head,
    ):
        assert base.sizes == {"flow": "small", "decode": "large"}
        assert list(compared(base, head, 3)) == [("flow", 1.5), ("decode", 1.5)]


@pytest.mark.parametrize(
    "revision, says",
    [
        ("absent", "absent: no such revision here; accepted: a commit, a branch or a tag"),
        ("--all", "--all: no such revision here"),
        ("empty", r"empty: has no timed benchmarks \(bench/timed/turns.py\); name a later revision"),
    ],
)
def test_revisions_that_cannot_be_compared(repository, revision, says):
    with pytest.raises(CannotCompare, match=says), worktree(revision, repository):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_nothing_is_left_behind(repository):
    before = git(repository, "status", "--porcelain")
    with pytest.raises(KeyboardInterrupt), worktree("old", repository) as tree:
        assert (tree / "ditflow" / "configs").is_symlink()
        (tree / "made").write_text("by a benchmark")
        raise KeyboardInterrupt
    assert not tree.exists() and not tree.parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert git(repository, "status", "--porcelain") == before


def test_a_side_that_dies_says_so(tmp_path):
    (tmp_path / "bench" / "timed").mkdir(parents=True)
    for package in ("bench", "bench/timed"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "bench" / "timed" / "turns.py").write_text("raise SystemExit(3)")
    ended = pytest.raises(CannotCompare, match="it: its benchmarks ended with status 3")
    with ended, side_of(tmp_path, "it"):
        pass


class Made(Side):
    """A side that reports the seconds it is given."""

    def __init__(self, sizes, seconds):
        self.sizes, self.made, self.asked = sizes, seconds, []

    def seconds(self, contest):
        self.asked.append(contest)
        return self.made


def test_only_the_same_work_is_compared():
    base = Made({"flow": "small", "decode": "small"}, 2.0)
    head = Made({"flow": "small", "decode": "large", "new": "small"}, 2.2)
    found = list(compared(base, head, 3))
    assert found == [
        ("flow", pytest.approx(1.1)),
        ("decode", "another size in the base: small"),
        ("new", "not in the base"),
    ]
    assert base.asked == head.asked == ["flow"] * 3
    assert verdict(found, 0.15) == [] and verdict(found, 0.05) == ["flow"]


def test_the_command(repository, monkeypatch, capsys):
    monkeypatch.setattr(compare, "ROOT", repository)
    (repository / "ditflow" / "configs").symlink_to(repository / "configs")  # as if it were installed
    monkeypatch.setattr(compare.worktree.__wrapped__, "__defaults__", (repository,))
    compare.main(["slow"])
    assert "| flow | 1.00 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="bench.compare: slower by more than 15%: flow, decode"):
        compare.main(["old"])
    compare.main(["old", "--margin", "0.6"])
    with pytest.raises(SystemExit, match="bench.compare: absent: no such revision"):
        compare.main(["absent"])


def test_a_side_answers_with_sizes_and_then_with_times():
    asked = iter(["preparation forward\n"])
    sizes, seconds = map(json.loads, answers(asked))
    assert sizes["whole run"].endswith("from latents to latents") and seconds > 0
