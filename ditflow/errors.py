"""Errors that a user can fix: one line that says what was given, what is accepted and what to do."""

SHOWN = 60  # characters of a value in a message


class DitflowError(Exception):
    """The job cannot continue. The command line prints only the message and exits with 1."""


class TemporaryError(DitflowError):
    """The cause is outside the job's inputs, such as a full disk, so the same job may succeed later."""


class SettingsError(DitflowError):
    """The settings are invalid; raised before any work starts. The command line exits with 2."""


def shown(given: object, most: int = SHOWN) -> str:
    """A value as it stands in a message, cut after `most` characters."""
    text = repr(given)
    return text if len(text) <= most else f"{text[:most]}..."
