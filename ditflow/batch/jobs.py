"""Jobs of a batch, which are checked before any of them runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditflow.errors import DitflowError, SettingsError
from ditflow.jobs.checks import with_absolute_paths
from ditflow.jobs.ensure import check_same
from ditflow.jobs.needs import check_clip, check_given, transfer_needs
from ditflow.run_folder.run import SETTINGS, Run, check_output_name, run_name
from ditflow.settings import Settings, read_settings

if TYPE_CHECKING:
    from ditflow.batch.jobs_file import Row


@dataclass(frozen=True)
class BatchJob:
    """A checked job. Its settings have absolute paths, and `output` is its run folder."""

    number: int  # from 1, in the order of the file
    settings: Settings
    finished: bool  # before the batch

    @property
    def folder(self) -> Path:
        return Path(self.settings.output)


def check_jobs(rows: Iterable[Row], output: Path) -> list[BatchJob]:
    """Checked jobs; those that name no run folder get one in `output`.

    Raises SettingsError, which says where it is, for the first one that cannot be run.
    """
    jobs, taken = [], {}
    for number, (where, values) in enumerate(rows, 1):
        try:
            job = _check(number, values, output)
        except DitflowError as error:
            raise SettingsError(f"{where}: {error}") from None
        if (other := taken.setdefault(os.path.realpath(job.folder), where)) is not where:
            raise SettingsError(
                f"{where}: {job.folder} is the run folder of {other} too; give each job its own"
            )
        jobs.append(job)
    return jobs


def _check(number: int, values: Mapping[str, Any], output: Path) -> BatchJob:
    settings = read_settings(**values)
    check_given(settings, *transfer_needs(settings))
    check_clip(settings)
    if settings.device not in ("auto", "cpu", "cuda"):
        raise SettingsError(
            f"device: {settings.device!r} given; accepted in a batch: auto, cpu, cuda (a worker has one GPU)"
        )
    folder = Path(settings.output or output / _default_name(settings, values)).expanduser().absolute()
    settings = with_absolute_paths(replace(settings, output=str(folder)))
    check_output_name(settings.output)
    if not (folder / SETTINGS).is_file():
        return BatchJob(number, settings, finished=False)
    run = Run.open(folder)
    check_same(settings, run)
    return BatchJob(number, settings, run.finished)


def _default_name(settings: Settings, values: Mapping[str, Any]) -> str:
    """A name that says what it is, and stays the same when other jobs come or go."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    return f"{run_name(settings)}-{digest.hexdigest()[:8]}"
