"""Writes a preview of an unfinished run while it denoises."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from ditflow.progress import Preview, Progress
from ditflow.video import Clip, write_clip

FILE = "preview.mp4"
WIDTH = 320  # pixels that thumbnails are enlarged to, at least
RATE = Fraction(4)  # latent frames a second


class PreviewFile(Progress):
    """Writes the preview of every few steps to the run folder, over the one before, and passes reports on."""

    def __init__(self, shown: Progress, every: int):
        self.shown, self.every = shown, every
        self.folder, self.done = Path(), 0

    def begin(self, folder: Path) -> None:
        self.folder = folder
        self.shown.begin(folder)

    def phase(self, name: str, steps: int = 0, work: Sequence[float] = ()) -> None:
        self.done = 0
        self.shown.phase(name, steps, work)

    def substep(self) -> None:
        self.shown.substep()

    def step(self, loss: float | None = None, preview: Preview | None = None) -> None:
        self.shown.step(loss, preview)
        self.done += 1
        if preview and self.done % self.every == 0:
            write_clip(Clip(_enlarged(preview()), RATE), self.folder / FILE)


def _enlarged(frames: np.ndarray) -> np.ndarray:
    """Each pixel as a square of an even number of pixels."""
    side = 2 * -(-WIDTH // (2 * frames.shape[2]))
    return frames.repeat(side, axis=1).repeat(side, axis=2)
