"""Reads a file of jobs (YAML, CSV or JSON lines), and checks every job before any of them runs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError, SettingsError, shown
from ditflow.jobs.checks import with_absolute_paths
from ditflow.jobs.ensure import check_same
from ditflow.jobs.needs import check_clip, check_given, transfer_needs
from ditflow.limits import BATCH_BYTES, BATCH_JOBS
from ditflow.run_folder.run import SETTINGS, Run, check_output_name, run_name
from ditflow.settings import Settings, read_settings
from ditflow.settings.yaml_file import is_near, parsed_yaml, read_bytes

WHAT = "job file"
PARTS = ("common", "each", "jobs")  # of a YAML file that is not a list
Row = tuple[str, Mapping[str, Any]]  # where it is, for messages, and settings by name


@dataclass(frozen=True)
class BatchJob:
    """A checked job. Its settings have absolute paths, and `output` is its run folder."""

    number: int  # from 1, in the order of the file
    settings: Settings
    finished: bool  # before the batch

    @property
    def folder(self) -> Path:
        return Path(self.settings.output)


def read_jobs(path: Path, output: Path) -> list[BatchJob]:
    """The jobs of a file; those that name no run folder get one in `output`.

    Raises SettingsError, which names the file and the line or job, for the first one that cannot be run.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise SettingsError(f"{WHAT} {path}: give a file named {', '.join('*' + each for each in READERS)}")
    rows = read(path)
    if len(rows) > BATCH_JOBS:
        raise SettingsError(f"{WHAT} {path} has more than {BATCH_JOBS} jobs: split it")
    for where, values in rows:
        given = str(values.get("output") or "")
        if given and not is_near(path, given):
            raise SettingsError(
                f"{where}: output {shown(given)} is neither in the file's folder nor in the current one; "
                "give another folder"
            )
    if not rows:
        raise SettingsError(f"{WHAT} {path} has no job: give one at least")
    return check_jobs(rows, output)


def check_jobs(rows: Iterable[Row], output: Path) -> list[BatchJob]:
    """Checked jobs. Raises SettingsError, which says where it is, for the first one that cannot be run."""
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


def _read_yaml(path: Path) -> list[Row]:
    content = parsed_yaml(read_bytes(path, WHAT, BATCH_BYTES), f"{WHAT} {path}")
    if isinstance(content, list):
        content = {"jobs": content}
    if not isinstance(content, dict) or not content.keys() <= {*PARTS}:
        raise SettingsError(f"{WHAT} {path}: expected a list of jobs, or only {', '.join(PARTS)}")
    common, each, jobs = (content.get(part) for part in PARTS)
    common = _mapping(common or {}, f"{path}, common")
    jobs = [{}] if jobs is None else jobs
    if not isinstance(jobs, list):
        raise SettingsError(f"{path}, jobs: expected a list of mappings")
    lists = _lists(path, each or {})
    if len(jobs) * math.prod(map(len, lists)) > BATCH_JOBS:
        raise SettingsError(f"{WHAT} {path} has more than {BATCH_JOBS} jobs: split it")
    given = [_mapping(job, f"{path}, jobs, entry {number}") for number, job in enumerate(jobs, 1)]
    made = [
        {name: value for part in (common, *chosen, job) for name, value in part.items()}
        for job in given
        for chosen in product(*lists)
    ]
    return [(f"{path}, job {number}", values) for number, values in enumerate(made, 1)]


def _lists(path: Path, each: Any) -> list[list[dict[str, Any]]]:
    """For each name in `each`, what its values set: that setting, or all that a mapping names."""
    found = []
    for name, values in _mapping(each, f"{path}, each").items():
        if not isinstance(values, list) or not values:
            raise SettingsError(f"{path}, each, {name}: expected a list of values")
        found.append([value if isinstance(value, dict) else {name: value} for value in values])
    return found


def _mapping(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise SettingsError(f"{where}: expected lines of `name: value`")
    return given


def _read_csv(path: Path) -> list[Row]:
    lines = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    rows = []
    try:
        names = [name.strip() for name in lines.fieldnames or ()]
        if len({*names}) < len(names):
            raise SettingsError(f"{WHAT} {path}: a column's name is given twice")
        lines.fieldnames = names
        for row in lines:
            where = f"{path}, line {lines.line_num}"
            if None in row or None in row.values():
                raise SettingsError(f"{where}: expected {len(names)} cells, as in the first line")
            rows.append((where, {name: cell for name, cell in row.items() if cell.strip()}))
    except csv.Error as error:
        raise SettingsError(f"{WHAT} {path}, line {lines.line_num}: {error}; give valid CSV") from None
    return rows


def _read_json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        where = f"{path}, line {number}"
        try:
            if line.strip():
                rows.append((where, _mapping(json.loads(line), where)))
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{where}: {error}; give one JSON object in each line") from None
    return rows


def _text(path: Path) -> str:
    try:
        return read_bytes(path, WHAT, BATCH_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{WHAT} {path} is not UTF-8 ({error.reason}): save it as UTF-8") from None


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
}
