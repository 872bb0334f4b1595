"""The defaults of settings in words, for help texts."""

from __future__ import annotations

from typing import Any

from ditflow.files import shipped
from ditflow.models.families import models
from ditflow.settings.speed import speed_settings


def default_in_words(name: str) -> str:
    """The default of a setting; nothing if that is empty."""
    general = shipped("defaults.yaml")
    if any(name in shipped(f"models/{model}.yaml")["settings"] for model in models()):
        return "the model's"
    by_speed = speed_settings(general["speed"])
    if name in by_speed:
        return f"{_worded(by_speed[name])}, unless --speed sets it"
    return _worded(general[name])


def _worded(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
