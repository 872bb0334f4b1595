"""Modes: names of changes to a run's settings."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ditflow.errors import SettingsError
from ditflow.settings import Settings, read_settings
from ditflow.settings.speed import speed_settings

Changes = Mapping[str, Any]

# what a stage or a pair decides, so that a mode is compared with exact on the same task; speeds are in NAMED
FIXED = {"model", "video", "frames", "size", "prompt", "seed", "steps", "guided", "output", "speed"}
FIXED |= {"motion", "mask", "camera_from"}


@dataclass(frozen=True)
class Mode:
    """A mode: from a stage's settings to the ones that it changes."""

    name: str
    changes: Callable[[Settings], Changes]

    def apply(self, settings: Settings) -> Settings:
        """Raises SettingsError for an unknown setting or value, and for a setting that the stage decides."""
        changes = self.changes(settings)
        if fixed := sorted(FIXED & changes.keys()):
            raise SettingsError(f"mode {self.name}: {fixed[0]} is the same for all modes of a stage")
        return read_settings(**vars(settings) | changes)


def half_temperature(settings: Settings) -> Changes:
    return {"temperature": settings.temperature / 2}


NAMED: dict[str, Callable[[Settings], Changes]] = {
    "no-op": lambda settings: {},
    "backbone": lambda settings: {"guidance": False, "injection": False},
    "half-temperature": half_temperature,
    "fast": lambda settings: speed_settings("fast"),
    "faster": lambda settings: speed_settings("faster"),
}


def read_mode(word: str) -> Mode:
    """The mode of a word: a name of NAMED or KEY=VALUE[,KEY=VALUE], or several of them joined by `+`.

    Each part changes the settings that the parts before it have made. Raises SettingsError.
    """
    parts = [_read_part(part) for part in word.split("+")]

    def changes(settings: Settings) -> Changes:
        found = {}
        for part in parts:
            found |= part(read_settings(**vars(settings) | found))
        return found

    return Mode(word, changes)


def _read_part(part: str) -> Callable[[Settings], Changes]:
    if part in NAMED:
        return NAMED[part]
    if "=" not in part:
        raise SettingsError(f"mode {part!r}: accepted are {', '.join(NAMED)} and KEY=VALUE[,KEY=VALUE]")
    # a comma inside a value, as in learning_rate=0.02,0.01, is followed by no key
    changes = dict(change.partition("=")[::2] for change in re.split(r",(?=\w+=)", part))
    if "," not in changes.get("learning_rate", ","):  # one rate for all guided steps
        changes["learning_rate"] += f",{changes['learning_rate']}"
    return lambda settings: changes


def changed(settings: Settings, mode: Mode) -> dict[str, Any]:
    """The settings that a mode changes, with their values."""
    after = mode.apply(settings)
    names = [field.name for field in fields(Settings)]
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(settings, name)}
