"""Makes SIGTERM and SIGHUP end a command as cleanly as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, as sent by `kill`, a batch system at its time limit, or when a container stops."""


class HungUp(KeyboardInterrupt):
    """SIGHUP, as sent when the terminal closes or the connection to it breaks."""


REQUESTS = {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated, "SIGHUP": HungUp}  # Windows has no SIGHUP


@contextmanager
def terminable() -> Iterator[None]:
    """Make each of these signals raise in the main thread.

    One that the caller has set to be ignored, as `nohup` does, stays ignored. While the command ends,
    another Ctrl-C ends it at once, and the others are ignored: a closing terminal sends several.
    """
    before = {}

    def end(number: int, _: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL if each == signal.SIGINT else signal.SIG_IGN)
        raise REQUESTS[signal.Signals(number).name]

    for name in REQUESTS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
