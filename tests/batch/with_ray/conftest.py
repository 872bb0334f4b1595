"""Fixtures of the tests on real Ray."""

import signal

import pytest

from ditflow.batch.cluster import LOCAL


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As the tests' own process has, so that results are the same bit for bit."""
    for name, value in {"OMP_NUM_THREADS": "1", **LOCAL}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def interruptible():
    """Started in a shell's background, the tests would hand an ignored SIGINT on to what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
