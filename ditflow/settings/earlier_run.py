"""The settings of a run that uses what an earlier run has optimised."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

from ditflow.errors import SettingsError
from ditflow.files import inside
from ditflow.settings.settings import Settings
from ditflow.settings.yaml_file import read_settings


def injection_settings(run: str | PathLike, **given: Any) -> Settings:
    """The settings of an earlier run, overridden by `given`, with its embedding instead of optimisation.

    Raises SettingsError if the folder is not a run's, or for wrong settings.
    """
    origin = inside(Path(run), "settings.yaml")
    if not origin.is_file():
        raise SettingsError(f"{run} is not a run folder: it has no settings.yaml; give the folder of a run")
    given = {
        "memory": "auto",  # the memory that is free may have changed since that run
        "preset": "auto",
        "decode_tile": "auto",
        "output": "",
        "reference_noise": "clean",  # nothing is read of the clip to be matched
    } | given
    embedding = inside(Path(run), "embedding.safetensors")
    return read_settings(origin, **given | {"saved_embedding": os.path.realpath(embedding)})
