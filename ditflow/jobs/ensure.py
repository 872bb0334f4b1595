"""Makes sure that a run exists: starts it, continues it, or takes it as it is."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path

from ditflow.errors import DitflowError, SettingsError
from ditflow.files import clear_unfinished
from ditflow.jobs.checks import with_absolute_paths
from ditflow.jobs.given import NOTHING, Given
from ditflow.jobs.transfer import Transferred, begin_transfer, continue_transfer
from ditflow.progress import Progress
from ditflow.run_folder.chosen import MOTION
from ditflow.run_folder.fingerprint import IGNORED
from ditflow.run_folder.lock import FILE as LOCK
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import SETTINGS, STATE, Run
from ditflow.settings import Settings

BEGUN = {STATE, MOTION, LOCK}  # what a run writes before its settings
RESOLVED = ("compile", "attention_forward")  # settings whose `auto` a run replaces by what it chose


def ensure(settings: Settings, folder: str | PathLike, progress: Progress | None = None) -> Run:
    """The run of these settings in this folder: the finished one, or else it is continued or started.

    Raises DitflowError, also if the folder holds something else, or a run of other settings.
    """
    found = ensure_transfer(settings, folder, progress or Progress())
    return found if isinstance(found, Run) else found.run


def ensure_transfer(
    settings: Settings, folder: str | PathLike, progress: Progress, given: Given = NOTHING
) -> Transferred | Run:
    """As `ensure`; a Run if it was finished before, which costs nothing."""
    folder = Path(folder).expanduser()
    settings = replace(settings, output=str(folder))
    if not (folder / SETTINGS).is_file():
        _clear(folder)
        return begin_transfer(settings, progress, replace(given, exact_folder=True))
    run = Run.open(folder)
    check_same(settings, run)
    if run.finished:
        return run
    return continue_transfer(run, progress, settings.memory, given.kept, settings.preset)


def check_same(settings: Settings, run: Run) -> None:
    """Raises SettingsError if the run in a folder has other settings than these."""
    asked, found = with_absolute_paths(settings), run.settings()
    for item in fields(asked):
        wanted, present = getattr(asked, item.name), getattr(found, item.name)
        chosen_by_run = item.name in RESOLVED and wanted == "auto"
        if item.name not in IGNORED and wanted != present and not chosen_by_run:
            raise SettingsError(
                f"{run.folder} holds a run with {item.name} {present!r}, and {wanted!r} is asked for: give "
                "another folder, or move that run away"
            )


def _clear(folder: Path) -> None:
    """Remove what a run that was killed before it wrote its settings has left."""
    if not folder.is_dir():
        return  # if it is anything else, the run says so
    with locked(folder):
        clear_unfinished(folder)
        if other := {path.name for path in folder.iterdir()} - BEGUN:
            raise DitflowError(
                f"{folder} exists and is not a run folder (it has {min(other)}): give another folder"
            )
        shutil.rmtree(folder)
