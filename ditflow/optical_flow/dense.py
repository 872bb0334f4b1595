"""Dense optical flow between frames, by OpenCV's DIS, which needs no weights.

Flow is (x, y), x to the right and y down, in pixels of a frame that has CELL pixels for each cell of a grid.
Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ditflow.errors import DitflowError

CELL = 8  # pixels: the side of a cell in the frames that are analysed
ROWS = 30  # cells along the shorter side of a frame: at 480 pixels, a cell is a token of CogVideoX
SMOOTHING = 1.0  # pixels: the deviation of a Gaussian filter, without which drawn edges and noise mislead DIS
SAMPLES = 32  # frames by which the colours of a video are judged
FEWEST = 2  # cells along a side: DIS refuses smaller frames
RETURN = 1.0, 0.4  # pixels, and share of the distance: a point may miss its start by this on its way back


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells for a frame: ROWS along its shorter side, or fewer if it is small."""
    cell = max(CELL, min(height, width) / ROWS)  # pixels
    return max(FEWEST, round(height / cell)), max(FEWEST, round(width / cell))


def flows(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    rows: int,
    columns: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # [rows * CELL, columns * CELL, 2] float32 each
    """The flow from each frame to the next, and from that one back."""
    search = dis()
    for before, after in pairwise(smoothed(frames, rows, columns)):
        yield search.calc(before, after, None), search.calc(after, before, None)


def dis() -> Any:
    """OpenCV's DIS: `calc(before, after, start)` is the flow [height, width, 2] between two pictures."""
    cv2 = opencv()
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def smoothed(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    rows: int,
    columns: int,
) -> Iterator[np.ndarray]:  # [rows * CELL, columns * CELL] uint8
    """The pictures of `contrasted` as DIS compares them."""
    cv2 = opencv()
    return (cv2.GaussianBlur(level, (0, 0), SMOOTHING) for level in contrasted(frames, rows, columns))


def contrasted(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    rows: int,
    columns: int,
) -> Iterator[np.ndarray]:  # [rows * CELL, columns * CELL] uint8
    """One channel of each frame: the direction in which the colours differ most, as grey is blind to some.

    The direction is that of the whole video.
    """
    cv2, size = opencv(), (columns * CELL, rows * CELL)
    some = frames[:: max(1, len(frames) // SAMPLES), :: CELL // 2, :: CELL // 2].reshape(-1, 3)
    axis = np.linalg.eigh(np.cov(some.T))[1][:, -1].astype(np.float32)
    weights = axis / np.abs(axis).sum() * (1 if axis.sum() > 0 else -1)
    least = 255 * weights[weights < 0].sum()
    for frame in frames:
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        yield np.clip(np.rint(small @ weights - least), 0, 255).astype(np.uint8)


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


def trust(
    there: np.ndarray,  # [height, width, 2]
    back: np.ndarray,  # [height, width, 2], from where `there` ends
) -> np.ndarray:  # [height, width]
    """How well each pixel returns to its start: 1 exactly, near 0 if it misses by more than RETURN allows."""
    missed = np.linalg.norm(there + sample(back, there), axis=-1)
    allowed = RETURN[0] + RETURN[1] * np.linalg.norm(there, axis=-1)
    return np.exp(-((missed / allowed) ** 2))


def cell_means(field: np.ndarray) -> np.ndarray:
    """The mean of each cell: [..., rows * CELL, columns * CELL, c] to [..., rows, columns, c]."""
    *first, height, width, channels = field.shape
    return field.reshape(*first, height // CELL, CELL, width // CELL, CELL, channels).mean(axis=(-4, -2))


def resized(field: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A field [height, width, ...] at another size."""
    cv2 = opencv()
    return cv2.resize(field, (columns, rows), interpolation=cv2.INTER_LINEAR)


def opencv() -> Any:
    """OpenCV. Raises DitflowError if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise DitflowError('optical flow needs OpenCV: pip install "ditflow[eval]"') from None
    return cv2
