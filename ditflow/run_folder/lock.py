"""Locks a run folder, so that only one process at a time works in it."""

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
    """Hold the folder's lock. It is released when this process dies, however it dies.

    Raises DitflowError, which names the holder, if another process has the lock.
    """
    path = folder / FILE
    try:
        descriptor = _take(path)
    except BlockingIOError:
        raise DitflowError(f"{folder} is in use by {_holder(path)}: wait for it, or end it first") from None
    except OSError as error:
        raise DitflowError(f"{folder} cannot be locked ({error.strerror}): use a writable folder") from None
    try:
        yield
    finally:
        if _is_same_file(descriptor, path):  # the folder may have been moved, and another made there
            path.unlink(missing_ok=True)  # before the lock is released
        os.close(descriptor)


def _take(path: Path) -> int:
    """Lock the file and return its descriptor. Raises BlockingIOError if another process holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the last holder may have removed the file between opening and locking
            if _is_same_file(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _holder(path: Path) -> str:
    try:
        words = path.read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        words = ""
    return "".join(filter(str.isprintable, words)) or "another process"
