"""Which files of a model the hub's cache holds. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
WITH_WEIGHTS = ("transformer", "vae", "text_encoder")
WANTED = [
    "model_index.json",
    *(f"{part}/*{end}" for part in PARTS for end in (".json", ".safetensors", ".model")),
]


def cached_folder(identity: str) -> Path | None:
    """The pipeline folder of a hub id in the cache, whole or not; None where nothing of it is there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(identity, allow_patterns=WANTED, local_files_only=True))
    except (OSError, ValueError):
        return None


def missing_files(folder: Path) -> list[str]:
    """What a pipeline folder lacks, by the names within it: a download that was cut short leaves such."""
    missing = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
    missing += [f"{part}/" for part in PARTS if not (folder / part).is_dir()]
    for part in WITH_WEIGHTS:
        if (folder / part).is_dir():
            missing += [f"{part}/{name}" for name in _missing_weights(folder / part)]
    return missing


def _missing_weights(part: Path) -> list[str]:
    """Where weights are in several files, an index names them."""
    index = next(part.glob("*.safetensors.index.json"), None)
    if index is None:
        whole = [path for path in part.glob("*.safetensors") if "-of-" not in path.name]
        return [] if whole else ["*.safetensors"]
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [index.name]
    return sorted(name for name in named if not (part / name).is_file())
