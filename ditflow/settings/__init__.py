"""All settings of a run."""

from ditflow.settings.earlier_run import injection_settings
from ditflow.settings.settings import Settings
from ditflow.settings.yaml_file import read_settings

__all__ = ["Settings", "injection_settings", "read_settings"]
