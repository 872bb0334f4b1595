"""Files: shipped configuration, the user's cache, and writes that are complete or do not happen."""

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ditflow import configs
from ditflow.errors import DitflowError

PACKAGE = Path(__file__).parent
CONFIGS = Path(configs.__path__[0])
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
# a zip file as torch writes it, or a bare pickle
PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


@cache
def shipped(name: str) -> dict[str, Any]:
    """A YAML file of `configs/`. Treat it as read-only."""
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


@cache
def shipped_names(folder: str) -> tuple[str, ...]:
    """The names of the YAML files in a folder of `configs/`."""
    return tuple(sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml")))


def cache_folder() -> Path:
    """The program's folder in the user's cache, for files that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditflow"


def inside(folder: Path, name: str) -> Path:
    """The path of a file or folder in a run folder; it need not exist.

    Run folders may come from other people: raises DitflowError if the path, or an entry of it, links out of
    the run folder.
    """
    path, root = folder / name, os.path.realpath(folder)
    for found in (path, *(path.iterdir() if path.is_dir() else ())):
        if not Path(os.path.realpath(found)).is_relative_to(root):
            raise DitflowError(f"{found} is a link out of the run folder: replace it with the file itself")
    return path


def refuse_pickle(path: Path) -> None:
    """Raise DitflowError if a weights file is a pickle by its name or its content."""
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    is_safetensors = start.endswith(b"{")  # its JSON header follows 8 bytes of length
    if path.suffix.lower() in PICKLE_SUFFIXES or (start.startswith(PICKLE_STARTS) and not is_safetensors):
        raise DitflowError(f"{path} is a pickle, and loading one can run code: give safetensors")


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a hidden path to write to; rename it to `path` at the end, or remove it on an error.

    A file is flushed to disk before it is renamed, and replaces an existing one. Raises OSError at the end if
    `path` is a folder that is not empty.
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
    """Remove the unfinished files that a killed process left in a folder."""
    for path in folder.glob(".*.unfinished"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, so that they survive a power cut."""
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":  # cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
