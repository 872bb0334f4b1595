"""Refuses models that bring pickled weights, code of their own or file names that lead elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ditflow.errors import DitflowError
from ditflow.files import PICKLE_SUFFIXES, refuse_pickle
from ditflow.limits import MODEL_LAYERS, SETTINGS_BYTES
from ditflow.models.hub import WITHOUT_WEIGHTS

CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}  # else config.json


def check_part(folder: Path, wanted: str | None) -> None:
    """Check a part of a pipeline folder, such as vae/, without loading it; `wanted`: its class, if fixed.

    Raises DitflowError for what is refused; OSError or ValueError for what is missing or damaged.
    """
    config = folder / CONFIGS.get(folder.name, "config.json")
    if config.exists() or folder.name != "tokenizer":
        _check_config(config, read_json(config), wanted)
    if folder.name not in WITHOUT_WEIGHTS:
        _check_weights(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file. Raises OSError, and ValueError for what is none."""
    with path.open("rb") as file:
        content = file.read(SETTINGS_BYTES + 1)
    if len(content) > SETTINGS_BYTES:
        raise ValueError(f"{path.name} is larger than {SETTINGS_BYTES} bytes")
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no names and values")
    return found


def check_safetensors(path: Path) -> None:
    """Raises DitflowError for a pickle, ValueError for another file that is no safetensors."""
    refuse_pickle(path)
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _check_config(path: Path, config: dict[str, Any], wanted: str | None) -> None:
    if "auto_map" in config:
        raise DitflowError(
            f"{path} asks for code of its own (auto_map), and none is run: give a model without it"
        )
    if wanted and config.get("_class_name", wanted) != wanted:
        raise DitflowError(
            f"{path} is of a {config['_class_name']!r}, not {wanted}: give a model of that class"
        )
    for name, value in config.items():
        if "layers" in name and value is not None and (not isinstance(value, int) or value > MODEL_LAYERS):
            raise DitflowError(
                f"{path} says {name} {value!r}, at most {MODEL_LAYERS} accepted: it is damaged"
            )


def _check_weights(folder: Path) -> None:
    pickles = [path for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES]
    for path in list(folder.glob("*.safetensors")) or pickles:
        check_safetensors(path)
    for index in folder.glob("*.safetensors.index.json"):
        names = read_json(index).get("weight_map")
        for name in names.values() if isinstance(names, dict) else ("",):
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise DitflowError(f"{index} names {name!r}, which is no .safetensors file beside it")
