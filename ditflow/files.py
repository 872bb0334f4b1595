"""Files: shipped configuration, the user's cache, and writes that are complete or do not happen."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ditflow.errors import DitflowError

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))  # torch's zip, bare


@cache
def shipped(name: str) -> dict[str, Any]:
    """A YAML file of `configs/`. Treat it as read-only."""
    return yaml.safe_load((files("ditflow.configs") / name).read_text(encoding="utf-8"))


def cache_folder() -> Path:
    """This program's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditflow"


def inside(folder: Path, name: str) -> Path:
    """A file or folder of a run folder, which may be from somebody else, and may not exist.

    Raises DitflowError where it, or what it holds, is a link that leads out of the run folder.
    """
    path, whole = folder / name, os.path.realpath(folder)
    for found in (path, *(path.iterdir() if path.is_dir() else ())):
        if not Path(os.path.realpath(found)).is_relative_to(whole):
            raise DitflowError(f"{found} is a link out of the run folder: put the file itself there")
    return path


def refuse_pickle(path: Path) -> None:
    """Raises DitflowError for weights in a pickle, by whatever name; what else it is, is not looked at."""
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    is_safetensors = start.endswith(b"{")  # after 8 bytes that say its header's length
    if path.suffix.lower() in PICKLE_SUFFIXES or (start.startswith(PICKLE_STARTS) and not is_safetensors):
        raise DitflowError(f"{path} is a pickle, and reading one can run code: give safetensors")


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write a file or a folder under: `path` at the end, removed on any error.

    A file is on the disk, not only on its way there, before it has its name. A file that has the name is
    replaced; for a folder that is not empty, OSError is raised at the end.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        if unfinished.is_file():
            _to_disk(unfinished)
        os.replace(unfinished, path)
        _to_disk(path.parent)
    finally:
        _remove(unfinished)


def clear_unfinished(folder: Path) -> None:
    """Remove what a process that was killed has left of `whole_or_absent` in a folder."""
    for path in folder.glob(".*.unfinished"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
