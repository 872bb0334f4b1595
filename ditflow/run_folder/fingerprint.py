"""The fingerprint of a run: its settings, weights and clip. A run resumes only from files that have it.

Weights are identified by their content, never by their path, so a run resumes after its model has been moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError
from ditflow.models.experts import split_expert
from ditflow.models.loading import ModelFolder
from ditflow.models.lora import lora_file, split_lora
from ditflow.run_folder.digests import file_digests
from ditflow.settings import Settings
from ditflow.settings.values import plain

FORMAT = "2"  # change it when the content or meaning of a checkpoint changes
OLDER = ("1",)  # formats that can be read: "1" has no clip, and weights by absolute path
KEYS = ("format", "settings", "weights", "clip", "motion")
IGNORED = ("memory", "preset", "decode_tile", "output")  # settings that do not change the denoised latents
PATHS = ("video", "model", "saved_embedding", "mask", "camera_from", "motion")  # of files with digests


def fingerprint(settings: Settings, folder: ModelFolder, clip: str, motion: str = "") -> dict[str, str]:
    """The settings, and digests of the weights, the clip and the chosen motion, as metadata of a file."""
    values = {
        item.name: plain(getattr(settings, item.name))
        for item in fields(settings)
        if item.name not in IGNORED
    }
    weights = json.dumps(file_digests(weight_files(settings, folder)))
    return {"format": FORMAT, "settings": json.dumps(values), "weights": weights, "clip": clip} | (
        {"motion": motion} if motion else {}
    )


def check_fingerprint(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises DitflowError if the metadata `found` in the file at `path` belongs to another run."""
    old = check_format(path, found)
    for name, identity, advice in (
        ("settings", _settings_identity, "restore settings.yaml"),
        ("weights", _old_weights if old else _weights, "restore the files"),
    ):
        if found.get(name) == expected[name]:
            continue
        try:
            before, now = (identity(json.loads(each[name]), expected) for each in (found, expected))
            changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        except (KeyError, ValueError, TypeError, AttributeError, DitflowError):
            raise DitflowError(f"{path} is damaged (its {name} cannot be read): start a new run") from None
        if changed:
            raise DitflowError(
                f"the {name} have changed since the run began ({', '.join(changed)}): {advice}, or start a "
                "new run with `ditflow transfer`"
            )
    if found.get("clip", expected["clip"] if old else None) != expected["clip"]:
        raise DitflowError(f"{path} was made from another clip: restore the file, or start a new run")
    if found.get("motion") != expected.get("motion"):
        raise DitflowError(
            f"{path} was made for another chosen motion: restore the run's motion file, or start a new run"
        )


def check_format(path: Path, found: Mapping[str, str]) -> bool:
    """Whether the file has an older format. Raises DitflowError if its format cannot be read."""
    version = found.get("format")
    if version not in (FORMAT, *OLDER):
        raise DitflowError(
            f"{path} was written by another version of ditflow (format {version}; this version reads format "
            f"{FORMAT}): resume with that version, or start a new run"
        )
    return version != FORMAT


def weight_files(settings: Settings, folder: ModelFolder) -> dict[str, Path]:
    """The files from which latents are computed, by names that do not depend on where they are.

    A LoRA given by hub id is not among them: only its name, which is a setting, identifies it.
    """
    files = {path.relative_to(folder.path).as_posix(): path for path in folder.latent_files()}
    for number, lora in enumerate(settings.lora, 1):
        source = split_lora(lora).source
        if Path(source).exists():
            files[f"lora {number}"] = lora_file(source)
    files["saved_embedding"] = Path(settings.saved_embedding)
    for name, kind in map(split_expert, settings.weights):
        if kind.endswith(".gguf"):
            files[f"gguf {name}".strip()] = Path(kind)
    return {name: path for name, path in files.items() if path.is_file()}


def _settings_identity(values: dict[str, Any], expected: Mapping[str, str]) -> dict[str, Any]:
    """The settings that must be the same, with defaults for those that the file's version did not know."""
    known = {item.name for item in fields(Settings)}
    given = {name: value for name, value in values.items() if name in known}
    settings = Settings(**given | {"model": json.loads(expected["settings"])["model"]})
    complete = values | {name: plain(getattr(settings, name)) for name in known}
    loras = map(split_lora, settings.lora)
    complete["lora"] = [lora._replace(source="") if os.path.isabs(lora.source) else lora for lora in loras]
    named = map(split_expert, settings.weights)
    complete["weights"] = {name: ".gguf" if kind.endswith(".gguf") else kind for name, kind in named}
    return {name: value for name, value in complete.items() if name not in (*IGNORED, *PATHS)}


def _weights(digests: dict[str, str], expected: Mapping[str, str]) -> dict[str, str]:
    return digests


def _old_weights(digests: dict[str, str], expected: Mapping[str, str]) -> dict[str, str]:
    """The digests alone, each by the name that it has now or else by its own, as paths do not count."""
    names = {digest: name for name, digest in json.loads(expected["weights"]).items()}
    return {names.get(digest, Path(name).name): digest for name, digest in digests.items()}
