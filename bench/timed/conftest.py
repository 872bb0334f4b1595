"""What `make bench` says to pytest, and the table at its end."""

from __future__ import annotations

import pytest

from bench.tables import ratio_table
from bench.timed.bounds import Bounds, read_bounds
from bench.timed.steady import steady

steady()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--expect",
        choices=["bounds", "slowdown", "nothing"],
        default="bounds",
        help="fail beyond bench/ratios.csv; plant a slowdown and fail where it is not seen; only measure",
    )


@pytest.fixture(scope="session")
def bounds() -> Bounds:
    return read_bounds()


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest) -> list[dict]:
    """What the contests gave, for the table."""
    request.config.contests_found = []
    return request.config.contests_found


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if contests := getattr(config, "contests_found", None):
        terminalreporter.write_line(ratio_table(contests, read_bounds()))
