"""Makes SIGTERM and SIGHUP end a command as cleanly as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, as sent by `kill`, a batch system at its time limit, or when a container stops."""


class HungUp(KeyboardInterrupt):
    """SIGHUP, as sent when the terminal closes or the connection to it breaks."""


SOON = 0.01  # seconds
REQUESTS = {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated, "SIGHUP": HungUp}  # Windows has no SIGHUP


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Make each of these signals raise in the main thread. Yields the list of those received.

    A library that waits in native code may turn any of them into a plain KeyboardInterrupt.

    One that the caller has set to be ignored, as `nohup` does, stays ignored. While the command ends,
    another Ctrl-C ends it at once, and the others are ignored: a closing terminal sends several.

    Python drops what is raised in a finaliser. Then the signal is sent once more.
    """
    before, hook, received = {}, sys.unraisablehook, []

    def end(number: int, _: object) -> NoReturn:
        received.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL if each == signal.SIGINT else signal.SIG_IGN)
        raise REQUESTS[signal.Signals(number).name]

    def dropped(lost: sys.UnraisableHookArgs) -> None:
        if not (received and isinstance(lost.exc_value, KeyboardInterrupt)):
            hook(lost)
            return
        for each in before:
            signal.signal(each, end)
        again = threading.Timer(SOON, os.kill, (os.getpid(), received[-1]))
        again.daemon = True
        again.start()

    for name in REQUESTS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, end)
    sys.unraisablehook = dropped
    try:
        yield received
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
