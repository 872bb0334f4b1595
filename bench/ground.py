"""How far the ground of a video moves, as a share of how far it should, by optical flow."""

from typing import NamedTuple

import numpy as np

from ditflow.optical_flow.dense import CELL, cell_means, opencv, smoothed
from ditflow.optical_flow.motion import SPAN, measure_motion
from ditflow.small.sight import look

STEEP = 1.0  # grey levels per pixel, root mean square in a cell: on smoother ground, motion is not seen
ALONG = 0.5  # share of its motion that the ground must show: along its shades, motion is not seen
LEAST = 0.02  # of the ground's cells: if fewer show motion, nothing is known
BORDER = 4  # pixels around an object that are not ground


class GroundMotion(NamedTuple):
    """`reach` is 1 for a ground that moves as it should, 0 for one that is still or shows no motion."""

    reach: float
    share: float  # share of the ground whose motion can be seen


def ground_motion(
    frames: np.ndarray,  # [frames, height, width, 3] uint8, the sides multiples of CELL
    true: np.ndarray,  # [frames, 2] how far the ground should have moved since the first frame, pixels
) -> GroundMotion:
    """Compare the ground's motion in SPAN frames with the true one, across its shades.

    Where shades change in one direction only, motion is seen in that direction only, and compared in it.
    """
    rows, columns = (side // CELL for side in frames.shape[1:3])
    objects = _around_objects(frames)
    if objects.all():
        return GroundMotion(0.0, 0.0)
    ground = frames.copy()
    ground[objects] = np.median(frames[~objects], axis=0)  # so that it does not decide which colours count
    moved = measure_motion(ground, rows, columns).forward * CELL
    steepness, across = (each[: len(moved)] for each in _shades(ground, rows, columns))
    hidden = cell_means(objects[..., None].astype(np.float32))[..., 0] > 0
    free = np.stack([~hidden[step : step + SPAN + 1].any(axis=0) for step in range(len(moved))])
    should = (true[SPAN:] - true[:-SPAN])[:, None, None]
    wanted, found = (should * across).sum(axis=-1), (moved * across).sum(axis=-1)
    seen = free & (steepness >= STEEP) & (np.abs(wanted) >= ALONG * np.linalg.norm(should, axis=-1))
    share = float(seen.sum() / max(1, free.sum()))
    if share < LEAST or not (wanted[seen] ** 2).sum():
        return GroundMotion(0.0, share)
    return GroundMotion(float((found * wanted)[seen].sum() / (wanted[seen] ** 2).sum()), share)


def _around_objects(frames: np.ndarray) -> np.ndarray:  # [frames, height, width] bool
    window = np.ones((2 * BORDER + 1,) * 2, np.uint8)
    objects = (look(frames).coverage > 0.5).astype(np.uint8)
    return np.stack([opencv().dilate(frame, window) for frame in objects]) > 0


def _shades(frames: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """How steeply each cell's grey level changes [frames, rows, columns], and where to [..., 2], (x, y)."""
    levels = np.stack(list(smoothed(frames, rows, columns))).astype(np.float32)
    slopes = np.stack(np.gradient(levels, axis=(2, 1)), axis=-1)  # (x, y)
    products = cell_means((slopes[..., :, None] * slopes[..., None, :]).reshape(*levels.shape, 4))
    squares, directions = np.linalg.eigh(products.reshape(*products.shape[:-1], 2, 2))
    return np.sqrt(np.maximum(squares[..., -1], 0)), directions[..., -1]
