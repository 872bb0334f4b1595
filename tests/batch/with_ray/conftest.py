"""Fixtures of the tests on real Ray."""

import pytest

from ditflow.batch.cluster import LOCAL


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As the tests' own process has, so that results are the same bit for bit."""
    for name, value in {"OMP_NUM_THREADS": "1", **LOCAL}.items():
        monkeypatch.setenv(name, value)
