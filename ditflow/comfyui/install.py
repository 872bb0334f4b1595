"""Writes the folder that ComfyUI loads the nodes from."""

from __future__ import annotations

import tomllib
from pathlib import Path

from ditflow.errors import DitflowError
from ditflow.files import whole_or_absent

PACK = Path(__file__).parent / "pack"
FOLDER = "ditflow-comfyui"
MARK = "pyproject.toml"  # names the pack; written first, so that an interrupted installation can be repeated


def install(path: Path) -> Path:
    """Write the folder to ComfyUI's `custom_nodes`, over an earlier one, and return its path.

    `path`: ComfyUI's folder, or its `custom_nodes`. Raises DitflowError if it is neither, if something else
    has the folder's name, or if the folder cannot be written.
    """
    folder = _custom_nodes(path) / FOLDER
    if folder.exists() and not _is_own(folder):
        raise DitflowError(f"{folder} exists and is not the folder of these nodes: move it away")
    for source in sorted(_sources(), key=lambda each: each.name != MARK):
        target = folder / source.relative_to(PACK)
        try:
            with whole_or_absent(target) as unfinished:
                unfinished.write_bytes(source.read_bytes())
        except OSError as error:
            reason = error.strerror or error
            raise DitflowError(f"{target} cannot be written ({reason}): change that and try again") from None
    return folder


def _custom_nodes(path: Path) -> Path:
    inside = path / "custom_nodes"
    if inside.is_dir():
        return inside
    if path.resolve().name == "custom_nodes" and path.is_dir():
        return path
    raise DitflowError(f"{path} has no folder custom_nodes: give ComfyUI's folder, or its custom_nodes")


def _sources() -> list[Path]:
    return [path for path in PACK.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]


def _is_own(folder: Path) -> bool:
    try:
        found = tomllib.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found.get("project", {}).get("name") == FOLDER
