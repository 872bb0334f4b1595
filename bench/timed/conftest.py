"""pytest's option `--expect`, and the table of ratios after the tests."""

import pytest

from bench.harness import steady
from bench.tables import ratio_table
from bench.timed.bounds import Bounds, read_bounds

FOUND = pytest.StashKey[list[dict]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--expect",
        choices=["bounds", "slowdown", "nothing"],
        default="bounds",
        help="bounds: fail outside bench/ratios.csv; slowdown: plant one, and fail if it breaks no bound; "
        "nothing: only measure",
    )


def pytest_configure(config: pytest.Config) -> None:
    steady()
    config.stash[FOUND] = []


@pytest.fixture(scope="session")
def expect(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--expect")


@pytest.fixture(scope="session")
def bounds() -> Bounds:
    return read_bounds()


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest) -> list[dict]:
    """The measurements of all contests so far."""
    return request.config.stash[FOUND]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if found := config.stash[FOUND]:
        terminalreporter.write_line(ratio_table(found, read_bounds()))
