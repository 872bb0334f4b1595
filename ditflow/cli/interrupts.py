"""A request to end, from a terminal or from the system, ends a command in the same orderly way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM: what `kill`, a batch system at its time limit or a stopped container sends."""


@contextmanager
def terminable() -> Iterator[None]:
    """Meanwhile SIGTERM raises Terminated in the main thread, as SIGINT raises KeyboardInterrupt."""

    def end(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
