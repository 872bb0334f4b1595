"""Keeps what has been measured of phases, one file for settings alike, so that later processes need not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

import ditflow_kernels
from ditflow.errors import DitflowError
from ditflow.files import PACKAGE, cache_folder, whole_or_absent
from ditflow.models.trust import read_json
from ditflow.planning.phases import Phases, Work
from ditflow.run_folder.digests import digest_cache
from ditflow.run_folder.run import versions
from ditflow.settings.values import plain
from ditflow_kernels.backends import fastest

logger = logging.getLogger(__name__)

MOST_FILES = 200  # some kilobytes each
STORING = ("accelerate", "bitsandbytes", "gguf")  # packages that say how weights are stored


def read_kept(phases: Phases) -> dict[str, Any]:
    """What is kept of `phases.measured`; nothing if there is no file, or if it is not as it was written."""
    try:
        file = plan_file(phases)
    except OSError:  # measuring says what is wrong with a GGUF file
        return {}
    try:
        found = read_json(file)
        if found["checksum"] != _checksum(file, found["measured"]):
            raise ValueError("its checksum does not match")
        return {name: _from_json(value) for name, value in found["measured"].items()}
    except (DitflowError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if os.path.exists(file):  # Path.exists raises for some folders
            logger.debug("%s cannot be used (%s); measuring again", file, error)
        return {}


def keep(phases: Phases) -> None:
    """Keep all of `phases.measured`, and remove the oldest files beyond `MOST_FILES`."""
    kept = {
        name: asdict(value) if isinstance(value, Work) else value for name, value in phases.measured.items()
    }
    try:
        file = plan_file(phases)
        with whole_or_absent(file) as unfinished:
            content = {"checksum": _checksum(file, kept), "measured": kept}
            unfinished.write_text(json.dumps(content), encoding="utf-8")
        kept_files = sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for old in kept_files[:-MOST_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:  # the cache is optional
        logger.debug("a plan is not cached: %s", error)


def plan_file(phases: Phases) -> Path:
    """The file of these phases, named by a digest of all that they depend on.

    Raises OSError if a GGUF file of the settings cannot be found.
    """
    settings, model = phases.settings, phases.model
    names = {item.name for item in fields(settings)} - {"model"}  # whose configurations count, not its place
    facts = [
        {name: plain(getattr(settings, name)) for name in names},
        [digest_cache(Path(kind)).name for kind in settings.weight_kinds if kind.endswith(".gguf")],
        [model.family.pipeline, vars(model.family), model.configs],
        [phases.device, fastest(torch.device(phases.device))],  # an old GPU has other kernels
        [versions(*STORING), _sources()],
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "plans" / f"{digest}.json"


@cache
def _sources() -> str:
    """The digest of the program's own code."""
    digest = hashlib.sha256()
    for folder in (PACKAGE, Path(ditflow_kernels.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _checksum(file: Path, kept: Any) -> str:
    """Covers the file's name, so that a file is not taken for another one."""
    return hashlib.sha256(json.dumps([file.name, kept], sort_keys=True).encode()).hexdigest()


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return Work(**value | {"walks": tuple(map(tuple, value["walks"]))})
    return value
