"""Errors a user can fix. Each message is one line: what was given, what is accepted and what to do."""


class DitflowError(Exception):
    """The job cannot continue. The command line prints only the message and exits with 1."""


class SettingsError(DitflowError):
    """The settings are invalid; raised before any work starts. The command line exits with 2."""
