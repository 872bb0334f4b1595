"""Makes SIGTERM end a command as cleanly as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM, as sent by `kill`, a batch system at its time limit, or when a container stops."""


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM raise Terminated in the main thread, as SIGINT raises KeyboardInterrupt."""

    def end(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
