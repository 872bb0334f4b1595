"""The fingerprint of a run: its settings and weights. A run resumes only from files with its fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from ditflow.errors import DitflowError
from ditflow.files import cache_folder, whole_or_absent
from ditflow.models.loading import ModelFolder
from ditflow.models.lora import split_scale
from ditflow.settings import Settings
from ditflow.settings.values import plain

logger = logging.getLogger(__name__)

FORMAT = "1"  # change it when the content or meaning of a checkpoint changes
IGNORED = ("memory", "preset", "decode_tile", "output")  # settings that do not change the denoised latents


def fingerprint(settings: Settings, folder: ModelFolder) -> dict[str, str]:
    """The settings, and digests of the weights, as metadata of a file."""
    values = {
        item.name: plain(getattr(settings, item.name))
        for item in fields(settings)
        if item.name not in IGNORED
    }
    files = weight_files(settings, folder)
    if any(not _cached(path).exists() for path in files):
        logger.info("hashing the weights, once; the result is cached")
    with ThreadPoolExecutor() as threads:
        digests = dict(zip(map(str, files), threads.map(file_digest, files), strict=True))
    return {"format": FORMAT, "settings": json.dumps(values), "weights": json.dumps(digests)}


def check_fingerprint(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises DitflowError if the metadata `found` in the file at `path` belongs to another run."""
    if found.get("format") != expected["format"]:
        raise DitflowError(
            f"{path} was written by another version of ditflow (format {found.get('format')}; this version "
            f"reads format {expected['format']}): resume with that version, or start a new run"
        )
    for name, advice in (
        ("settings", "restore settings.yaml"),
        ("weights", "restore the files"),
    ):
        if found.get(name) == expected[name]:
            continue
        try:
            before, now = json.loads(found.get(name, "{}")), json.loads(expected[name])
            changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        except (ValueError, TypeError, AttributeError):
            raise DitflowError(f"{path} is damaged (its {name} cannot be read): start a new run") from None
        raise DitflowError(
            f"the {name} have changed since the run began ({', '.join(changed)}): {advice}, or start a new "
            "run with `ditflow transfer`"
        )


def weight_files(settings: Settings, folder: ModelFolder) -> list[Path]:
    """The files from which latents are computed.

    A LoRA given by hub id is not among them: only its name, which is a setting, identifies it.
    """
    given = [*(split_scale(lora)[0] for lora in settings.lora), settings.saved_embedding]
    if settings.weights.endswith(".gguf"):
        given.append(settings.weights)
    return [*folder.latent_files(), *(path for path in map(Path, given) if path.is_file())]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, cached until the file's size or modification time changes."""
    cached = _cached(path)
    try:
        if re.fullmatch("[0-9a-f]{64}", digest := cached.read_text(encoding="ascii")):
            return digest
    except (OSError, ValueError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        with whole_or_absent(cached) as unfinished:
            unfinished.write_text(digest, encoding="ascii")
    except OSError as error:  # the cache is optional
        logger.debug("%s is not cached: %s", cached, error)
    return digest


def _cached(path: Path) -> Path:
    """The path at which the digest of a file, with its current size and time, is cached."""
    about = path.stat()
    facts = json.dumps([str(path.resolve()), about.st_size, about.st_mtime_ns])
    return cache_folder() / "weights" / hashlib.sha256(facts.encode()).hexdigest()
