"""Checks that a job has what it needs, before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

from ditflow.errors import SettingsError
from ditflow.files import check_source
from ditflow.jobs.device import device_name
from ditflow.settings import Settings


def check_first(settings: Settings, command: str) -> None:
    """Refuse what a new run lacks before torch is imported: settings, a device, a clip.

    Raises DitflowError.
    """
    source, *others = transfer_needs(settings)
    check_given(settings, source, *(others if command != "flow" else ()))
    if settings.has_clip or command != "flow":  # else it is drawn without a model
        device_name(settings)
    check_clip(settings)


def check_clip(settings: Settings) -> None:
    """Raises DitflowError if the clip that the settings name is not there."""
    if settings.has_clip:
        check_source(Path(os.path.expanduser(settings.video)))


def transfer_needs(settings: Settings) -> tuple[str, ...]:
    """The settings that a transfer cannot do without."""
    return "video" if settings.has_clip else "motion", "prompt"


def check_given(settings: Settings, *names: str) -> None:
    """Raises SettingsError if one of these settings is empty."""
    for name in names:
        if not getattr(settings, name).strip():
            raise SettingsError(f"{name}: nothing given; use --{name}")
