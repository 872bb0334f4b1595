"""What `--speed` sets: all settings that save work at the cost of exactness."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ditflow.files import shipped

if TYPE_CHECKING:
    from ditflow.settings.settings import Settings

SPEEDS = tuple(shipped("speed.yaml"))


def speed_settings(speed: str) -> dict[str, Any]:
    """What one of SPEEDS sets: a value for each of the same settings."""
    return shipped("speed.yaml")[speed]


def exact(settings: Settings) -> Settings:
    """The same run without any approximation that a speed could set."""
    return replace(settings, speed="exact", **speed_settings("exact"))
