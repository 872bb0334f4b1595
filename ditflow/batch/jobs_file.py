"""Reads a file of jobs: YAML, CSV or JSON lines. Imports nothing heavy, so that it refuses a file at once."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from ditflow.errors import SettingsError, shown
from ditflow.limits import BATCH_BYTES, BATCH_JOBS
from ditflow.settings.yaml_file import is_near, parsed_yaml, read_bytes

WHAT = "job file"
PARTS = ("common", "each", "jobs")  # of a YAML file that is not a list
Row = tuple[str, Mapping[str, Any]]  # where it is, for messages, and settings by name


def read_rows(path: Path) -> list[Row]:
    """The jobs of a file as they are written. Raises SettingsError, which says where in the file."""
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
    return rows


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
