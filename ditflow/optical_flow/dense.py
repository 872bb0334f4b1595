"""Dense optical flow between frames, by OpenCV's DIS, which needs no weights.

Flow is (x, y), x to the right and y down, in pixels of the frame that `shrink` gives.
Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditflow.errors import DitflowError

CELL = 8  # pixels: the side of a cell in the frames that are analysed


@dataclass(frozen=True)
class FrameFlow:
    """The flow of a video between neighbouring frames."""

    forward: np.ndarray  # [frames - 1, height, width, 2] float32, from each frame to the next
    backward: np.ndarray  # the same, from each next frame back


def frame_flow(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    rows: int,
    columns: int,
) -> FrameFlow:
    """The flow between neighbouring frames, at CELL pixels for each of `rows` x `columns` cells."""
    cv2 = opencv()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    size = columns * CELL, rows * CELL
    grey = [
        cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        for frame in frames
    ]
    steps = list(zip(grey, grey[1:], strict=False))
    shape = (len(steps), size[1], size[0], 2)
    forward = np.array([dis.calc(before, after, None) for before, after in steps], np.float32)
    backward = np.array([dis.calc(after, before, None) for before, after in steps], np.float32)
    return FrameFlow(forward.reshape(shape), backward.reshape(shape))


def chain(steps: Iterable[np.ndarray]) -> np.ndarray:
    """Follow the content of each pixel through successive flows [height, width, 2]; at least one."""
    moved = None
    for step in steps:
        moved = step.copy() if moved is None else moved + sample(step, moved)
    return moved


def sample(
    field: np.ndarray,  # [height, width, channels] or [height, width]
    moved: np.ndarray,  # [height, width, 2]
) -> np.ndarray:
    """The field where the content of each pixel has moved to; beyond the frame its edge is repeated."""
    cv2 = opencv()
    y, x = np.mgrid[: field.shape[0], : field.shape[1]].astype(np.float32)
    at = x + moved[..., 0], y + moved[..., 1]
    return cv2.remap(field, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def cell_means(field: np.ndarray) -> np.ndarray:
    """The mean of each cell: [..., rows * CELL, columns * CELL, c] to [..., rows, columns, c]."""
    *first, height, width, channels = field.shape
    return field.reshape(*first, height // CELL, CELL, width // CELL, CELL, channels).mean(axis=(-4, -2))


def opencv() -> Any:
    """OpenCV. Raises DitflowError if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise DitflowError('optical flow needs OpenCV: pip install "ditflow[eval]"') from None
    return cv2
