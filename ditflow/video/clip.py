"""A video in memory."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

COMPRESSION_NOISE = 4  # largest change of a still pixel, of 255
FEWEST_LEVELS = 16  # of 255; in pictures of fewer, motion is hardly seen


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray  # [frames, height, width, 3] uint8 RGB
    frame_rate: Fraction  # frames a second

    @property
    def is_still(self) -> bool:
        """Whether every frame equals the first, up to compression noise."""
        change = np.abs(self.frames.astype(np.int16) - self.frames[0])
        return bool(change.max() <= COMPRESSION_NOISE)

    @property
    def few_levels(self) -> str:
        """How few levels the pictures use, for a warning; empty if they are enough."""
        levels = int(self.frames.max()) - int(self.frames.min())
        return f"the pictures use only {levels} of 255 levels" if levels < FEWEST_LEVELS else ""


def side_by_side(left: Clip, right: Clip) -> Clip:
    """Two clips as one, each frame beside the other's, at the left clip's frame rate.

    Raises ValueError if their frame counts or heights differ.
    """
    if left.frames.shape[:2] != right.frames.shape[:2]:
        raise ValueError(
            f"frames and heights must match, not {left.frames.shape[:2]} and {right.frames.shape[:2]}"
        )
    return Clip(np.concatenate((left.frames, right.frames), axis=2), left.frame_rate)
