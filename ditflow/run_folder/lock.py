"""Locks a run folder, so that only one process at a time works in it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ditflow.errors import DitflowError, TemporaryError
from ditflow.files import regular_file

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

FILE = ".lock"
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none
LOCKED_BYTE = 1 << 20  # on Windows; beyond the holder's name, which others may then read


class InUse(TemporaryError):
    """Another process has the lock."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. It is released when this process dies, however it dies.

    Raises InUse, which names the holder, if another process has the lock; DitflowError if the folder cannot
    be locked, or if locks have no effect on its file system.
    """
    path = folder / FILE
    try:
        descriptor = _take(path)
    except BlockingIOError:
        raise InUse(f"{folder} is in use by {_holder(path)}: wait for it, or end it first") from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise DitflowError(
                f"{folder} cannot be locked, because its file system has no locks (flock: {error.strerror}): "
                "use a folder on another file system, or mount this one with locks"
            ) from None
        raise DitflowError(f"{folder} cannot be locked ({error.strerror}): use a writable folder") from None
    try:
        yield
    finally:
        _release(path, descriptor)


def _take(path: Path) -> int:
    """Lock the file and return its descriptor. Raises BlockingIOError if another process holds the lock."""
    while True:
        descriptor = os.open(path, FLAGS, 0o644)
        try:
            _lock(descriptor)
            # the last holder may have removed the file between opening and locking, but not on Windows
            if not fcntl or _is_same_file(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                _check_effect(path)
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    try:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        raise BlockingIOError from None


def _check_effect(path: Path) -> None:
    """Raises OSError if the file, which is locked, can be locked once more: then locks exclude nobody."""
    if not fcntl:
        return
    second = os.open(path, FLAGS & ~os.O_CREAT)
    try:
        _lock(second)
    except BlockingIOError:
        return
    finally:
        os.close(second)
    raise OSError(errno.ENOLCK, "locks have no effect")


def _release(path: Path, descriptor: int) -> None:
    if fcntl:
        if _is_same_file(descriptor, path):  # the folder may have been moved, and another made there
            path.unlink(missing_ok=True)  # before the lock is released
        os.close(descriptor)
        return
    os.close(descriptor)
    with suppress(OSError):  # Windows keeps files that are open: another process has the lock by now
        path.unlink()


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _holder(path: Path) -> str:
    try:
        with regular_file(path).open(encoding="utf-8", errors="replace") as file:
            words = file.read(200)
    except (DitflowError, OSError):
        words = ""
    return "".join(filter(str.isprintable, words)) or "another process"
