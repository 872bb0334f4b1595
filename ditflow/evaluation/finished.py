"""A run that is done, read again from its folder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.job import SUFFIXES
from ditflow.runs import read_tensors
from ditflow.settings import Settings, read_settings
from ditflow.video.folders import image_paths
from ditflow.video.timeline import read_timeline


@dataclass(frozen=True)
class FinishedRun:
    """A transfer's folder: everything but the videos is read."""

    folder: Path
    settings: Settings
    record: dict[str, Any]  # run.json

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises DitflowError where the folder is no finished transfer."""
        settings, record = folder / "settings.yaml", folder / "run.json"
        if not settings.is_file() or not record.is_file():
            raise DitflowError(f"{folder} is no finished run: give a folder with settings.yaml and run.json")
        try:
            run = cls(folder, read_settings(settings), json.loads(record.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DitflowError(f"{record} is damaged ({error}): make the run again") from None
        if not run.video("result").exists():
            raise DitflowError(f"{folder} has no {run.video('result').name}: give the folder of a transfer")
        return run

    def video(self, name: str) -> Path:
        """Where its "result", "reference" or "comparison" is."""
        return self.folder / f"{name}{SUFFIXES[self.settings.format]}"

    def clip(self, name: str) -> video.Clip:
        return video.read_clip(self.video(name), frames=self.settings.frames, size=None)

    def latents(self) -> tuple[Tensor, Tensor]:
        """The reference's and the result's, [1, frames, channels, height, width]."""
        tensors, _ = read_tensors(self.folder / "latents.safetensors", "every transfer writes it")
        return tensors["reference"], tensors["latents"]


def whole_clip(source: Path) -> video.Clip:
    """All frames of a video or an image folder. Raises DitflowError where it cannot be read."""
    if not source.exists():
        raise DitflowError(f"{source} does not exist: give a video file or a folder of images")
    count = len(image_paths(source)) if source.is_dir() else read_timeline(source, sys.maxsize).count
    return video.read_clip(source, frames=max(1, count), size=None)
