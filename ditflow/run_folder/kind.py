"""Says whether a folder is a run's. Imports nothing heavy, so that any other one is refused at once."""

from __future__ import annotations

from collections.abc import Sequence
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


def check_some_finished(folders: Sequence[Path]) -> None:
    """Raise DitflowError unless at least one is the folder of a finished transfer."""
    refused = []
    for folder in folders:
        try:
            check_finished_folder(folder)
            return
        except DitflowError as error:
            refused.append(error)
    raise none_finished(refused)


def none_finished(refused: Sequence[DitflowError]) -> DitflowError:
    """The error for folders that were refused one by one, with these errors."""
    if len(refused) == 1:
        return refused[0]
    return DitflowError(f"none of the {len(refused)} folders is a finished transfer: {refused[0]}")
