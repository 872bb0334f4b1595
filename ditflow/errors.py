"""Errors that a user can fix: one line that says what was given, what is accepted and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LARGER_RANGE = "use --dtype bfloat16 or float32, which have a larger range than float16"  # advice
SHOWN = 60  # characters of a value in a message


class DitflowError(Exception):
    """The job cannot continue. The command line prints only the message and exits with 1."""


class TemporaryError(DitflowError):
    """The cause is outside the job's inputs, such as a full disk, so the same job may succeed later."""


class Cancelled(DitflowError):
    """The caller has cancelled the job. A run that is kept on disk can be resumed."""


class NotFinite(DitflowError):
    """NaN or infinity appeared. The steps finished before are valid."""


class SettingsError(DitflowError):
    """The settings are invalid; raised before any work starts. The command line exits with 2."""


def shown(given: object, most: int = SHOWN) -> str:
    """A value as it stands in a message, cut after `most` characters."""
    text = repr(given)
    return text if len(text) <= most else f"{text[:most]}..."


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a mistyped one; None if none is alike."""
    return next(iter(difflib.get_close_matches(given, list(known), n=1)), None)


def interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The request to end behind an error: the error itself, or what was under way when it was raised.

    A request arrives anywhere, so cleaning up after it can fail with an error of its own.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
