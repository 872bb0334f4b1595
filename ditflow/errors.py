"""Errors that are a person's to mend: one line that says what was given, what is accepted and what to do."""


class DitflowError(Exception):
    """A job cannot go on. The command line prints the message alone and exits with 1."""


class SettingsError(DitflowError):
    """What was asked for makes no sense, known before any work. The command line exits with 2."""
