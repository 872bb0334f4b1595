"""Every option of a run, once."""

from ditflow.settings.settings import Settings, read_settings

__all__ = ["Settings", "read_settings"]
