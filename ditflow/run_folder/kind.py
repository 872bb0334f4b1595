"""Says whether a folder is a run's. Imports nothing heavy, so that any other one is refused at once."""

from __future__ import annotations

from pathlib import Path

from ditflow.errors import DitflowError
from ditflow.files import inside

RECORD = "run.json"
SETTINGS = "settings.yaml"


def check_run_folder(folder: Path) -> None:
    """Raise DitflowError unless this is the folder of a transfer, finished or not."""
    if not inside(folder, SETTINGS).is_file():
        raise DitflowError(f"{folder} is not a run folder: it has no {SETTINGS}; give a transfer's folder")


def check_finished_folder(folder: Path) -> None:
    """Raise DitflowError unless this is the folder of a finished transfer."""
    if not all(inside(folder, name).is_file() for name in (SETTINGS, RECORD)):
        raise DitflowError(f"{folder} is not a finished run: give a folder with {SETTINGS} and {RECORD}")
