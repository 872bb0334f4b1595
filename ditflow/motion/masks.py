"""Which cells of each latent frame a mask covers, and which of them move against the camera."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import reduce
from torch import Tensor

from ditflow.models.protocols import Grid
from ditflow.optical_flow.dense import opencv

COVERED = 0.5  # of a cell's area, in the mean over the latent frame's video frames
AGAINST = 0.25  # patches: content that differs from the camera's motion by this moves
LEAST = 0.02  # of the cells: if fewer move between neighbouring frames, frames further apart are compared


def token_mask(
    mask: np.ndarray,  # [video frames, pixels, pixels] bool, the sides multiples of the grid's
    grid: Grid,
    spans: Sequence[range],  # of `ModelFamily.latent_spans`
) -> Tensor:  # [frames, height * width] bool
    """The cells of each latent frame that are covered at least half; if there is none, the one covered most.

    A latent frame is the mean of its video frames; beyond the video's end the last one is repeated. Where the
    mask is empty, no cell counts.
    """
    cells = "(h y) (w x) -> (h w)"
    sizes = {"h": grid.height, "w": grid.width}
    shares = np.stack([reduce(frame.astype(np.float32), cells, "mean", **sizes) for frame in mask])
    last = len(mask) - 1
    shares = np.stack([shares[[min(index, last) for index in span]].mean(axis=0) for span in spans])
    least = np.minimum(COVERED, shares.max(axis=-1, keepdims=True))
    return torch.from_numpy((shares >= least) & (shares > 0))


def moving_mask(
    flow: np.ndarray,  # [frames (query), frames (key), height * width, 2], of `token_flow`
    camera: np.ndarray,  # the same, of `camera_flow`
    grid: Grid,
) -> Tensor:  # [frames, height * width] bool
    """The cells whose content moves against the camera, with the holes between them.

    They differ from its motion to the frame before and to the frame after: dense flow carries along the
    ground that an object has just left, or is about to cover. Slow objects are seen over more frames.
    """
    against = np.nan_to_num(np.linalg.norm(flow - camera, axis=-1), nan=np.inf)
    found = [_against_both(against, gap) for gap in range(1, grid.frames)]
    enough = [each for each in found if each.mean() >= LEAST]
    moving = enough[0] if enough else max(found, key=np.sum, default=np.zeros(against.shape[1:], bool))
    return torch.from_numpy(np.stack([_closed(frame, grid) for frame in moving]))


def _against_both(
    against: np.ndarray,  # [frames, frames, cells] patches, infinite where unknown
    gap: int,  # frames
) -> np.ndarray:  # [frames, cells] bool
    frames = len(against)
    sides = [[against[q, k] for k in (q - gap, q + gap) if 0 <= k < frames] for q in range(frames)]
    least = np.stack([np.min(side, axis=0) if side else np.zeros(against.shape[2]) for side in sides])
    return (least >= AGAINST) & np.isfinite(least)


def _closed(
    moving: np.ndarray,  # [cells] bool
    grid: Grid,
) -> np.ndarray:
    """With cells that lie between moving ones, such as those of an object's smooth inside."""
    cv2 = opencv()
    picture = np.pad(moving.reshape(grid.height, grid.width), 1).astype(np.uint8)
    closed = cv2.morphologyEx(picture, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    return closed[1:-1, 1:-1].astype(bool).ravel()
