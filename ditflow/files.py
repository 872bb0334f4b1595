"""Files and folders that appear whole, or not at all, and where those go that can be made again."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """This program's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditflow"


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
