"""What the form asks for, as settings: where its files are kept, its samples, and its checks."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ditflow.errors import SettingsError
from ditflow.files import regular_file, whole_or_absent
from ditflow.settings import Settings, read_settings

UPLOAD, SAMPLE, DRAWN = "Upload", "Sample", "Drawn motion"
SOURCES = (SAMPLE, UPLOAD, DRAWN)
SAMPLE_SEEDS = (9, 2, 5, 7)  # of generated clips
EXAMPLE_PROMPT = "a blue square on a white background"
EXAMPLE_DRAWING = """\
objects:
  - shape: ellipse
    path:
      - {time: 0, center: [0.2, 0.5], size: [0.3, 0.4]}
      - {time: 1, center: [0.8, 0.5], size: [0.3, 0.4]}
"""
DRAWINGS = [".yaml", ".yml", ".json"]  # how files of drawn motion end
FILES = "uploads"  # the folder, beside the runs, of what they were made from


@dataclass(frozen=True)
class Form:
    """The form as a user has filled it in."""

    source: str  # one of SOURCES
    upload: str | None
    sample: int | None  # a seed
    drawing: str
    prompt: str
    model: str
    speed: str
    frames: float | None
    mask: str | None
    keeps_embedding: bool

    def settings(self, runs: Path, **others: Any) -> Settings:
        """The settings of the run, whose clip, mask or drawing is kept beside the runs.

        Raises DitflowError if they are not accepted or the clip cannot be read.
        """
        if not self.prompt.strip():
            raise SettingsError("no prompt given: say what the new video should show")
        given: dict[str, Any] = {"prompt": self.prompt, "model": self.model, "speed": self.speed}
        given |= {"frames": self.frames or None, **self._source(runs / FILES)}
        if self.mask:
            given["mask"] = keep(Path(self.mask), runs / FILES)
        if self.keeps_embedding:
            given["optimise"] = "embedding"
        settings = read_settings(**given | others)
        check_source(settings)
        return settings

    def _source(self, files: Path) -> dict[str, Path]:
        if self.source == UPLOAD:
            if not self.upload:
                raise SettingsError("no clip given: upload one, or choose a sample")
            return {"video": keep(Path(self.upload), files)}
        if self.source == SAMPLE:
            return {"video": sample_clip(SAMPLE_SEEDS[0] if self.sample is None else self.sample, files)}
        return {"motion": keep_text(self.drawing, files / "drawn")}


def check_source(settings: Settings) -> None:
    """Read the clip or the drawing once, as the run will. Raises DitflowError if it cannot be read."""
    from ditflow.models.families import family_of
    from ditflow.motion.motion_file import read_drawing
    from ditflow.motion.source import source_clip

    drawing = read_drawing(Path(settings.motion)) if settings.motion else None
    source_clip(settings, drawing, family_of(settings.model))


def keep(upload: Path, files: Path) -> Path:
    """Copy an uploaded file, whose own folder is cleared later, so that its runs can be repeated.

    Equal files have one copy.
    """
    with regular_file(upload).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kept = files / digest[:12] / upload.name
    if not kept.exists():
        with whole_or_absent(kept) as unfinished:
            shutil.copyfile(upload, unfinished)
    return kept.resolve()


def keep_text(text: str, files: Path) -> Path:
    """Write a drawing to a file. Equal ones have one file."""
    kept = files / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    with whole_or_absent(kept) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return kept.resolve()


def drawing_text(file: Path) -> str:
    """The text of a file of drawn motion. Raises SettingsError if it is not one."""
    from ditflow.motion.motion_file import read_drawing

    read_drawing(file)
    return file.read_text(encoding="utf-8")


@cache
def sample_names() -> list[tuple[str, int]]:
    """Each sample in words, and its seed."""
    from ditflow.small.clips import made_clip

    clips = ((seed, made_clip(seed, painted=slice(0, 1))) for seed in SAMPLE_SEEDS)
    return [(f"{clip.caption}, {clip.scene.path}", seed) for seed, clip in clips]


def sample_clip(seed: int, files: Path) -> Path:
    """A sample as a video file."""
    from ditflow.small.clips import CLIP_MARK, FRAME_RATE, made_clip
    from ditflow.video import Clip, write_clip

    kept = files / f"sample-{seed}.mp4"
    if not kept.exists():
        write_clip(Clip(made_clip(seed).frames, FRAME_RATE), kept, metadata=f"{CLIP_MARK}{seed}")
    return kept.resolve()
