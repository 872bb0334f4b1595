"""A time in which reading has to end: a decoder that hangs, or a pipe that nobody writes to, never would."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

from ditflow.errors import DitflowError

LONGEST = 600.0  # seconds

Result = TypeVar("Result")


def in_time(read: Callable[[], Result], source: Path) -> Result:
    """What `read` returns or raises, from a thread: the main one stays free to hear of an interrupt.

    Raises DitflowError after `LONGEST`. A thread cannot be stopped; the process ends without waiting for it.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="reading", daemon=True).start()
    try:
        return future.result(LONGEST)
    except TimeoutError:
        raise DitflowError(
            f"{source} could not be read within {LONGEST:.0f} s: its decoder hangs, or the stretch begins "
            "too far in; write the stretch to a file of its own, or give another video"
        ) from None
