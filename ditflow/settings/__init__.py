"""All settings of a run."""

from ditflow.settings.settings import Settings, read_settings

__all__ = ["Settings", "read_settings"]
