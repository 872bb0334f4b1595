"""What the nodes pass to each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from comfy_api.latest import io

from ditflow.errors import SettingsError
from ditflow.settings.yaml_file import parsed_mapping
from ditflow.video import Clip

Model = io.Custom("DITFLOW_MODEL")  # a HeldModel
Motion = io.Custom("DITFLOW_MOTION")  # a GivenMotion
Run = io.Custom("DITFLOW_RUN")  # a KeptRun

CATEGORY = "ditflow"
CHOSEN_BY_NODES = ("video", "prompt", "output", "mask", "motion", "device", "saved_embedding")


@dataclass(frozen=True)
class GivenMotion:
    """The motion that a video is to have: a clip's, a drawn one, or a drawn one over a clip's."""

    clip: Clip | None = None
    mask: np.ndarray | None = None  # uint8 [frames, height, width, 3], white where the clip's motion counts
    mask_invert: bool = False
    drawing: str = ""  # YAML

    @property
    def digest(self) -> str:
        """A name for this motion, the same for an equal one."""
        found = hashlib.sha256(f"{self.mask_invert} {self.drawing}".encode())
        for frames in (self.clip and self.clip.frames, self.mask):
            found.update(f"{frames is not None and frames.shape}".encode())
            found.update(b"" if frames is None else np.ascontiguousarray(frames))
        found.update(f"{self.clip and self.clip.frame_rate}".encode())
        return found.hexdigest()


@dataclass(frozen=True)
class KeptRun:
    """A finished run: its folder, and the clip that it had in memory."""

    folder: Path
    clip: Clip | None


def more_settings() -> io.String.Input:
    """The input for settings that have no widget."""
    return io.String.Input(
        "settings",
        optional=True,
        multiline=True,
        default="",
        tooltip="Other settings, one a line, such as `learning_rate: [0.02, 0.01]`. They win over the inputs "
        "above. `ditflow transfer --help` lists them, with dashes for underscores.",
    )


def read_more(text: str) -> Mapping[str, Any]:
    """The settings in that input. Raises SettingsError for those that the nodes choose."""
    values = parsed_mapping(text.encode(), "settings") if text.strip() else {}
    for name in CHOSEN_BY_NODES:
        if name in values:
            raise SettingsError(f"settings: {name} is chosen by the nodes; leave it out")
    return values
