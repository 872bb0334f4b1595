"""A time limit for reading a source: a decoder can hang, and a pipe can wait forever."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

from ditflow.errors import DitflowError

LONGEST = 600.0  # seconds

Result = TypeVar("Result")


def in_time(read: Callable[[], Result], source: Path) -> Result:
    """Call `read` in a thread, so that the main thread can still be interrupted, and return its result.

    Raises what `read` raises, or DitflowError after `LONGEST` seconds. The thread cannot be stopped, but the
    process does not wait for it at exit.
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
            f"{source} could not be read within {LONGEST:.0f} s: its decoder hangs, or the frames start "
            "too far in; cut them out into a file of their own, or give another video"
        ) from None
