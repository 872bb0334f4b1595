"""The camera's motion in a clip: a shift, rotation and zoom of the whole frame between latent frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ditflow.models.protocols import Grid
from ditflow.motion.edits import inside
from ditflow.optical_flow.camera import similarity

SEEN, FEWEST = 0.05, 4  # share and number of cells: if less is known of a step, its motion is unknown


def camera_flow(
    flow: np.ndarray,  # [frames (query), frames (key), height * width, 2], of `token_flow`
    grid: Grid,
) -> np.ndarray:  # the same; NaN where frames are not connected
    """Where each cell's content would go if nothing moved but the camera, (x, y) in latent patches.

    A similarity is fitted to the flow from each latent frame to the next, so that objects do not count. Those
    of several steps are composed. What leaves the frame has a displacement too.
    """
    y, x = np.mgrid[: grid.height, : grid.width]
    places = (x - (grid.width - 1) / 2 + 1j * (y - (grid.height - 1) / 2)).ravel()
    moved = np.full((grid.frames, grid.frames, len(places)), complex(np.nan, np.nan))
    for query in range(grid.frames):
        here, factor, offset = moved[query], 1 + 0j, 0j
        here[query] = 0
        for key in range(query + 1, grid.frames):
            step = _step(places, flow[key - 1, key])
            if step is None:
                break
            factor, offset = step[0] * factor, step[0] * offset + step[1]
            here[key] = factor * places + offset - places
            moved[key, query] = (places - offset) / factor - places
    return np.stack([moved.real, moved.imag], axis=-1).astype(np.float32)


def _step(places: np.ndarray, flow: np.ndarray) -> tuple[complex, complex] | None:
    """The similarity of a flow [cells, 2]; None if too little of it is known."""
    known = ~np.isnan(flow).any(axis=-1)
    if known.sum() < max(FEWEST, SEEN * len(known)):
        return None
    return similarity(places[known], flow[known].astype(np.float64) @ (1, 1j))


def camera_target(flow: np.ndarray, grid: Grid) -> Tensor:
    """The camera's motion as a target for every cell; arguments as of `camera_flow`."""
    return inside(torch.from_numpy(camera_flow(flow, grid)), grid)
