"""`docs/reliability.md` matches the tests, no fault in it is lost, and failures are written as lost."""

import os
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from reliability import FAULTS, LOST, SURVIVED, TABLE, Row, read_page
from repository import ROOT


def test_the_page_matches_the_tests(request):
    """Compares the tests collected in this session, which are all of them in `make test`."""
    written = defaultdict(Counter)
    for row in read_page(TABLE.read_text(encoding="utf-8")):
        written[row.file][row.fault] += row.cases
    collected = request.config.stash[FAULTS]
    assert "tests/suite/test_reliability.py" in collected
    for file in written.keys() | collected.keys():
        if file in collected:
            assert written[file] == collected[file], file
        else:
            assert (ROOT / file).is_file(), file


def test_nothing_is_lost():
    rows = read_page(TABLE.read_text(encoding="utf-8"))
    assert rows and LOST not in {row.outcome for row in rows}


TRIED = '''"""Faults of a trial.

More of it."""
import pytest

@pytest.mark.fault("held | by all")
@pytest.mark.parametrize("number", range(3))
def test_holds(number):
    pass

@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=pytest.mark.fault("held by some")) for n in range(2)]
)
def test_holds_once(number):
    assert number

@pytest.fixture
def spoilt():
    yield
    raise OSError

@pytest.mark.fault("failing afterwards")
def test_spoilt(spoilt):
    pass

@pytest.mark.fault("known to fail")
@pytest.mark.xfail
def test_known():
    assert False

@pytest.mark.fault("of another machine")
@pytest.mark.skip
def test_skipped():
    pass

def test_no_fault():
    assert False
'''


def test_failed_faults_are_lost_and_skipped_ones_not_tried(tmp_path):
    """With a worker process that runs the tests and another that writes, as in `make reliability`."""
    (tmp_path / "test_trial.py").write_text(TRIED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(what)\n")
    page = tmp_path / "page.md"
    words = [sys.executable, "-m", "pytest", "-q", "-n1", "-p", "reliability", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*words, "-m", "fault", "--reliability", str(page), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    file = "test_trial.py"
    assert read_page(text) == [
        Row(file, "failing afterwards", 1, LOST),
        Row(file, "held by some", 2, LOST),
        Row(file, "held | by all", 3, SURVIVED),
        Row(file, "known to fail", 1, LOST),
        Row(file, "of another machine", 1, "not tried here"),
    ]
    assert "Faults: 5, in 8 cases. Survived: 1, lost: 3, not tried here: 1.\n" in text
    assert "## Faults of a trial\n" in text
