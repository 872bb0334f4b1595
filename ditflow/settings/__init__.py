"""All settings of a run."""

from ditflow.settings.settings import Settings
from ditflow.settings.yaml_file import read_settings

__all__ = ["Settings", "read_settings"]
