"""Pytest plugin that writes `docs/reliability.md`: the faults that tests cause, and how each ended.

`make reliability` runs the tests marked `fault(what)` and writes the page; `test_reliability.py` compares the
page with the tests.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from repository import ROOT

TABLE = ROOT / "docs" / "reliability.md"
SURVIVED, LOST, UNTRIED = "survived", "lost", "not tried here"
FAULTS = pytest.StashKey[dict[str, Counter]]()
HEAD = """# What a run survives

Every fault that the tests cause, and how it ended. `make reliability` runs these tests and writes this page;
`make test` fails if the page does not match the tests, or if a fault is lost. A fault counts as survived if
all of its cases pass: the run continued or could be resumed, or it was refused in one line that says why; no
file under its final name was left incomplete; and none of the user's files was touched. The file named above
each table holds the exact checks.

"""


@dataclass(frozen=True, order=True)
class Row:
    """One fault, the number of its cases, and their worst outcome."""

    file: str  # test file, relative to the root of the repository
    fault: str
    cases: int
    outcome: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="FILE", help="write how each fault ended")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = defaultdict(Counter)
    path = config.getoption("--reliability")
    if path and not hasattr(config, "workerinput"):  # not in a worker process
        config.pluginmanager.register(Outcomes(path))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note the fault that a test causes, by file, whether or not the test is run."""
    file = item.path.relative_to(item.config.rootpath).as_posix()
    found = item.config.stash[FAULTS][file]
    if marker := item.get_closest_marker("fault"):
        (what,) = marker.args
        title = (item.module.__doc__ or file).strip().splitlines()[0].rstrip(".")
        found[what] += 1
        item.user_properties.append(("fault", (file, title, what)))


class Outcomes:
    """Collects how each case ended, and writes the page at the end of the session."""

    def __init__(self, path: Path):
        self.path = path
        self.titles: dict[str, str] = {}
        # by fault, the worst outcome of each case so far
        self.found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for a case's setup, the case itself and its teardown."""
        for file, title, what in (value for name, value in report.user_properties if name == "fault"):
            self.titles[file] = title
            cases = self.found[file, what]
            if report.failed or hasattr(report, "wasxfail"):
                cases[report.nodeid] = LOST
            elif report.skipped:
                cases[report.nodeid] = UNTRIED
            else:
                cases.setdefault(report.nodeid, SURVIVED)

    def pytest_sessionfinish(self) -> None:
        rows = []
        for (file, what), cases in self.found.items():
            worst = next(end for end in (LOST, UNTRIED, SURVIVED) if end in cases.values())
            rows.append(Row(file, what, len(cases), worst))
        self.path.write_text(page(rows, self.titles), encoding="utf-8")


def page(rows: list[Row], titles: dict[str, str]) -> str:
    ends = Counter(row.outcome for row in rows)
    cases = sum(row.cases for row in rows)
    text = HEAD + f"Faults: {len(rows)}, in {cases} cases. Survived: {ends[SURVIVED]}, lost: {ends[LOST]}"
    text += f", {UNTRIED}: {ends[UNTRIED]}.\n" if ends[UNTRIED] else ".\n"
    file = None
    for row in sorted(rows):
        if row.file != file:
            file = row.file
            text += f"\n## {titles[file]}\n\n`{file}`\n\n| fault | cases | |\n| --- | --- | --- |\n"
        fault = row.fault.replace("|", r"\|")
        text += f"| {fault} | {row.cases} | {row.outcome} |\n"
    return text


def read_page(text: str) -> list[Row]:
    rows, file = [], ""
    for line in text.splitlines():
        if found := re.fullmatch(r"`(\S+)`", line):
            file = found[1]
        elif found := re.fullmatch(r"\| (.+) \| (\d+) \| (.+) \|", line):
            rows.append(Row(file, found[1].replace(r"\|", "|"), int(found[2]), found[3]))
    return rows
