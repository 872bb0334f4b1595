"""One process at a time works in a run folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditflow.errors import DitflowError

FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Meanwhile the folder is this process's alone. A process that dies, in whatever way, lets go of it.

    Raises DitflowError where another one has it, and names that one.
    """
    path = folder / FILE
    try:
        descriptor = _take(path)
    except BlockingIOError:
        raise DitflowError(f"{folder} is in use by {_holder(path)}: wait for it, or end it first") from None
    except OSError as error:
        raise DitflowError(
            f"{folder} cannot be locked ({error.strerror}): give one that can be written in"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held
        os.close(descriptor)


def _take(path: Path) -> int:
    """A locked descriptor of the file that has the name; raises BlockingIOError where another has that."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # its last holder may have removed it between opening and locking
            if _is_of(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        words = path.read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        words = ""
    return "".join(filter(str.isprintable, words)) or "another process"
