"""Finds a model's files in the hub's cache, and turns downloads off. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WITHOUT_WEIGHTS = ("tokenizer", "scheduler")


@contextmanager
def offline() -> Iterator[None]:
    """Use only what is on this machine: no library requests anything from the hub meanwhile."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def wanted_files(parts: Sequence[str]) -> list[str]:
    """Patterns of the files to download for a pipeline with these parts."""
    suffixes = (".json", ".safetensors", ".model")
    return ["model_index.json", *(f"{part}/*{suffix}" for part in parts for suffix in suffixes)]


def cached_folder(identity: str, parts: Sequence[str]) -> Path | None:
    """The pipeline folder of a hub id in the cache, complete or not; None if the cache has none of it."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(identity, allow_patterns=wanted_files(parts), local_files_only=True))
    except (OSError, ValueError):
        return None


def missing_files(folder: Path, parts: Sequence[str]) -> list[str]:
    """Files that a pipeline folder lacks, relative to it, for instance after an interrupted download."""
    missing = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
    missing += [f"{part}/" for part in parts if not (folder / part).is_dir()]
    for part in parts:
        if part not in WITHOUT_WEIGHTS and (folder / part).is_dir():
            missing += [f"{part}/{name}" for name in _missing_weights(folder / part)]
    return missing


def _missing_weights(part: Path) -> list[str]:
    """Weights files missing from a part. If the weights are split over files, an index names these."""
    index = next(part.glob("*.safetensors.index.json"), None)
    if index is None:
        whole = [path for path in part.glob("*.safetensors") if "-of-" not in path.name]
        return [] if whole else ["*.safetensors"]
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [index.name]
    return sorted(name for name in named if not (part / name).is_file())
