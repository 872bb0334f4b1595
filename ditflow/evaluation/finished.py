"""A finished run, read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.files import check_source, inside
from ditflow.limits import SOURCE_FRAMES
from ditflow.models.hub import offline
from ditflow.run_folder.kind import RECORD, SETTINGS, check_finished_folder
from ditflow.run_folder.record import read_record
from ditflow.run_folder.run import Run, read_latents, video_name
from ditflow.settings import Settings, read_settings
from ditflow.video.folders import image_paths
from ditflow.video.timeline import read_timeline


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished transfer, with its settings and record; videos are read on demand."""

    folder: Path
    settings: Settings
    record: dict[str, Any]  # run.json

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a folder. Raises DitflowError if it is not a finished transfer."""
        check_finished_folder(folder)
        settings, record = inside(folder, SETTINGS), inside(folder, RECORD)
        with offline():  # they may name a model of the hub
            run = cls(folder, read_settings(settings), read_record(record))
        if not run.video("result").exists():
            raise DitflowError(f"{folder} has no {run.video('result').name}: give the folder of a transfer")
        return run

    @property
    def has_target(self) -> bool:
        """Whether it was guided towards a motion that its settings chose, which its folder then holds."""
        return self.settings.chooses_motion and self.settings.optimises

    def video(self, name: str) -> Path:
        """The path of its "result", "reference" or "comparison"."""
        return inside(self.folder, video_name(name, self.settings))

    def clip(self, name: str) -> video.Clip:
        return Run(self.folder).clip(name, self.settings)

    def latents(self) -> tuple[Tensor | None, Tensor]:
        """The latents of the reference, if there was a clip, and of the result; see `read_latents`."""
        return read_latents(self.folder, self.settings.has_clip)


def whole_clip(source: Path) -> video.Clip:
    """Read all frames of a video or an image folder. Raises DitflowError if it cannot be read."""
    check_source(source)
    count = (
        len(image_paths(source)) if source.is_dir() else read_timeline(source, SOURCE_FRAMES).resampling.count
    )
    return video.read_clip(source, frames=max(1, count), size=None)
