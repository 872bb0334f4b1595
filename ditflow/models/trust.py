"""Refuses models that have pickled weights, code of their own or file names that lead out of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ditflow.errors import DitflowError, shown
from ditflow.files import PICKLE_SUFFIXES, check_folder, refuse_pickle, regular_file
from ditflow.limits import SETTINGS_BYTES
from ditflow.models.hub import WITHOUT_WEIGHTS

CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}  # else config.json
ADAPTER = "adapter_config.json"  # with it, transformers loads the model that it names


class Header(NamedTuple):
    """What a safetensors file's header says of a tensor."""

    shape: tuple[int, ...]
    kind: str  # F32, BF16, I8, ...


def check_part(folder: Path, expected_class: str | None) -> None:
    """Check a part of a pipeline folder, such as vae/, without loading it.

    `expected_class` is the class that its config must name, or None for any. Raises DitflowError if the part
    is refused, OSError or ValueError if it is missing or damaged.
    """
    check_folder(folder)
    if (folder / ADAPTER).exists():
        raise DitflowError(
            f"{folder / ADAPTER} names another model to load instead, which is refused: remove it, and give "
            "LoRAs with --lora"
        )
    config = folder / CONFIGS.get(folder.name, "config.json")
    if config.exists() or folder.name != "tokenizer":
        _check_config(config, read_json(config), expected_class)
    if folder.name not in WITHOUT_WEIGHTS:
        _check_weights(folder)


def read_json(path: Path, most: int = SETTINGS_BYTES) -> dict[str, Any]:
    """Read a mapping from a JSON file of at most so many bytes.

    Raises OSError, or ValueError if the file holds something else.
    """
    with regular_file(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path.name} is larger than {most} bytes")
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a mapping of names to values")
    return found


def read_headers(path: Path) -> dict[str, Header]:
    """A safetensors file's tensors by name.

    Raises DitflowError for a pickle and for anything but a regular file, ValueError for any other file that
    is not safetensors.
    """
    refuse_pickle(regular_file(path))
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            return {
                name: Header(tuple(tensor.get_shape()), tensor.get_dtype()) for name, tensor in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _check_config(path: Path, config: dict[str, Any], expected_class: str | None) -> None:
    if "auto_map" in config:
        raise DitflowError(
            f"{path} asks to run the model's own code (auto_map), which is refused: give a model without it"
        )
    if expected_class and config.get("_class_name", expected_class) != expected_class:
        raise DitflowError(
            f"{path} names the class {shown(config['_class_name'])}, and only {expected_class} is accepted "
            "here"
        )


def _check_weights(folder: Path) -> None:
    pickles = [path for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES]
    for path in list(folder.glob("*.safetensors")) or pickles:
        read_headers(path)
    for index in folder.glob("*.safetensors.index.json"):
        names = read_json(index).get("weight_map")
        for name in names.values() if isinstance(names, dict) else ("",):
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise DitflowError(f"{index} names {name!r}, which is not a .safetensors file in its folder")
