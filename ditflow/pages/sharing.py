"""Settings and messages for a page that is sent to others: files are named without their folders."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ditflow.evaluation.finished import FinishedRun
from ditflow.models.experts import split_expert
from ditflow.models.hub import is_hub_id
from ditflow.settings import Settings

GIVEN = ("video", "mask", "camera_from", "motion", "saved_embedding")  # settings that name files to have
FILES = (*GIVEN, "output")
SOURCES = ("model", "lora", "weights")  # settings that may name a file, a folder or something on the hub
ABSOLUTE = re.compile(r"(?<![\w/.:])~?/(?:[^\s/'\"]+/)+(?=[^\s/'\"])")  # the folder of a path in a text


def shared_yaml(settings: Settings) -> str:
    """All settings as YAML."""
    values = yaml.safe_load(settings.to_yaml())
    shared = {name: _shared(name, value) for name, value in values.items()}
    return yaml.safe_dump(shared, sort_keys=False, allow_unicode=True)


def given_files(settings: Settings) -> list[str]:
    """The names of the files and folders that a run with these settings reads, beside its model."""
    return [Path(getattr(settings, name)).name for name in GIVEN if getattr(settings, name)]


def shared_text(text: str, run: FinishedRun) -> str:
    """A message about a run."""
    values = [str(run.folder), str(run.folder.resolve())]
    for name, value in asdict(run.settings).items():
        given = value if isinstance(value, tuple) else [value]
        if name in FILES + SOURCES:
            values += [each for each in given if name in FILES or not is_hub_id(each)]
    paths = {split_expert(value)[1] for value in values if "/" in value}
    for path in sorted(paths, key=len, reverse=True):  # the longest first: one may begin with another
        text = text.replace(path, Path(path).name)
    return ABSOLUTE.sub("", text)


def _shared(name: str, value: Any) -> Any:
    if name in FILES:
        return Path(value).name
    if name in SOURCES:
        return [_source(each) for each in value] if isinstance(value, list) else _source(value)
    return value


def _source(given: str) -> str:
    """A model, LoRA or weights file; OWNER/NAME on the hub is kept, and so are `high=` and `:scale`."""
    expert, source = split_expert(given)
    if is_hub_id(source.partition(":")[0]) and not Path(source).exists():
        return given
    return f"{expert}={Path(source).name}" if expert else Path(source).name
