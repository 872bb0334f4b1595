"""Files: shipped configuration, the user's cache, and writes that are complete or do not happen."""

import errno
import json
import logging
import math
import os
import shutil
import stat
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

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
NO_CACHE = Path(os.devnull) / "ditflow"  # a path below a file: nothing can be read or written there
CONFIGS = Path(configs.__path__[0])
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
# a zip file as torch writes it, or a bare pickle
PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
KINDS = {
    stat.S_ISFIFO: "named pipe",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
    stat.S_ISDIR: "folder",
}


@cache
def shipped(name: str) -> dict[str, Any]:
    """A YAML file of `configs/`. Treat it as read-only."""
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


@cache
def shipped_names(folder: str) -> tuple[str, ...]:
    """The names of the YAML files in a folder of `configs/`."""
    return tuple(sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml")))


@cache
def _tell_no_cache() -> None:
    logger.info("nothing is cached, because no home folder is known; set XDG_CACHE_HOME to a folder")


def cache_folder() -> Path:
    """The program's folder in the user's cache, for files that can be made again.

    Whoever reads or writes there must expect OSError.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditflow"
    except RuntimeError:  # in containers: no HOME, and a user without an entry in the passwd file
        _tell_no_cache()
        return NO_CACHE


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


def regular_file(path: Path) -> Path:
    """Return the path of a file that can be read to its end without waiting. Follows links.

    Raises DitflowError for a FIFO, a socket, a device, a folder and an empty file. The files of /proc count
    as empty. Raises OSError if there is no such file.
    """
    found = path.stat()
    if kind := _kind(found.st_mode):
        raise DitflowError(f"{path} is a {kind}: give a regular file")
    if not found.st_size:
        raise DitflowError(f"{path} is empty: give a regular file with content")
    return path


def check_source(source: Path) -> None:
    """Raise DitflowError unless a clip's path is a regular file or a folder: others may never end."""
    try:
        if not source.is_dir():
            regular_file(source)
    except OSError as error:
        reason = "does not exist" if not source.exists() else f"cannot be opened ({error.strerror})"
        raise DitflowError(f"{source} {reason}: give a video file or a folder of images") from None


def check_folder(folder: Path) -> None:
    """Raise DitflowError if a folder, or a folder in it, holds a FIFO, a socket or a device.

    For folders that a library reads, because it may open any of the files and wait for ever.
    """
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if path.exists() and not path.is_dir() and (kind := _kind(path.stat().st_mode)):
            raise DitflowError(f"{path} is a {kind}: give a regular file")


def _kind(mode: int) -> str:
    """What kind of file has this mode; empty for a regular file."""
    return next((name for is_kind, name in KINDS.items() if is_kind(mode)), "")


def json_text(content: Any, indent: int | None = 2) -> str:
    """JSON, in which a number that is NaN or infinite is null."""
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def finite(content: Any) -> Any:
    """The content, with None for each number that is NaN or infinite."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


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
def whole_or_absent(path: Path, *, replace_folder: bool = False) -> Iterator[Path]:
    """Yield a hidden path to write to; rename it to `path` at the end, or remove it on an error.

    A file, or a folder with all its files, is flushed to disk before it is renamed. A file replaces an
    existing one. Raises OSError if `path` is a device, a named pipe or a socket, and at the end if it is a
    folder that is not empty, except that a folder replaces it with `replace_folder`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "it is not a regular file", str(path))
    unfinished, replaced = (
        path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished") for _ in range(2)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        for written in (*unfinished.rglob("*"), unfinished):
            _to_disk(written)
        if unfinished.is_dir() and path.is_dir() and (replace_folder or not any(path.iterdir())):
            os.replace(path, replaced)  # Windows does not rename to a folder, not even to an empty one
        os.replace(unfinished, path)
        _to_disk(path.parent)
    finally:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        _remove(replaced)
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
