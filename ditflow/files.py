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

    A file that has the name is replaced; for a folder that is not empty, OSError is raised at the end.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)
