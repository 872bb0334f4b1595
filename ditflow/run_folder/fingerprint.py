"""Which run a file is of: its settings and the bytes of its weights. Only that run goes on from it."""

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

FORMAT = "1"  # another one, once a state holds something else or a run makes something else of it
FREE = ("memory", "preset", "decode_tile", "output")  # settings that leave the denoised latents as they are


def identity(settings: Settings, folder: ModelFolder) -> dict[str, str]:
    """What has to agree, as words for a file's metadata."""
    values = {
        item.name: plain(getattr(settings, item.name)) for item in fields(settings) if item.name not in FREE
    }
    files = weight_files(settings, folder)
    if any(not _kept(path).exists() for path in files):
        logger.info("reading the weights once, to know them again")
    with ThreadPoolExecutor() as threads:
        digests = dict(zip(map(str, files), threads.map(file_digest, files), strict=True))
    return {"format": FORMAT, "settings": json.dumps(values), "weights": json.dumps(digests)}


def check_identity(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises DitflowError where a file at `path` says of itself that it is of another run."""
    if found.get("format") != expected["format"]:
        raise DitflowError(
            f"{path} was written by another version of ditflow (its format is {found.get('format')}, "
            f"this one reads {expected['format']}): go on with that version, or make the run again"
        )
    for name, advice in (
        ("settings", "put settings.yaml back as it was"),
        ("weights", "put the files back"),
    ):
        if found.get(name) == expected[name]:
            continue
        try:
            before, now = json.loads(found.get(name, "{}")), json.loads(expected[name])
            changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        except (ValueError, TypeError, AttributeError):
            raise DitflowError(f"{path} is damaged (no {name} in it): make the run again") from None
        raise DitflowError(
            f"the {name} are not those that the run began with ({', '.join(changed)}): {advice}, or start "
            "a new run with `ditflow transfer`"
        )


def weight_files(settings: Settings, folder: ModelFolder) -> list[Path]:
    """The files from which latents are computed; the text encoder's are not among them: texts are kept.

    A LoRA by a hub's id is known by its name alone, which is a setting.
    """
    files = [
        path
        for part in ("transformer", "vae", "scheduler")
        for path in sorted((folder.path / part).glob("*"))
        if path.suffix in (".json", ".safetensors")
    ]
    given = [*(split_scale(lora)[0] for lora in settings.lora), settings.saved_embedding]
    if settings.weights.endswith(".gguf"):
        given.append(settings.weights)
    return [*files, *(path for path in map(Path, given) if path.is_file())]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes; kept in the user's cache for as long as its size and time stay."""
    kept = _kept(path)
    try:
        if re.fullmatch("[0-9a-f]{64}", digest := kept.read_text(encoding="ascii")):
            return digest
    except (OSError, ValueError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        with whole_or_absent(kept) as unfinished:
            unfinished.write_text(digest, encoding="ascii")
    except OSError as error:  # a cache is a convenience
        logger.debug("%s is not kept: %s", kept, error)
    return digest


def _kept(path: Path) -> Path:
    """Where the digest of a file is, as it is now."""
    about = path.stat()
    facts = json.dumps([str(path.resolve()), about.st_size, about.st_mtime_ns])
    return cache_folder() / "weights" / hashlib.sha256(facts.encode()).hexdigest()
