"""The target of a drawn motion, computed exactly, and what a user should know of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ditflow.models.protocols import Grid
from ditflow.motion.drawing import Drawing
from ditflow.motion.edits import inside
from ditflow.motion.layers import layers_of


def latent_times(frames: int, spans: Sequence[range]) -> np.ndarray:
    """The time of each latent frame: the mean of its video frames' times, from 0 to 1.

    `spans`: of `ModelFamily.latent_spans`. Beyond the video's end its last frame is repeated.
    """
    last = frames - 1
    return np.array([np.mean([min(index, last) for index in span]) / max(last, 1) for span in spans])


def drawn_target(
    drawing: Drawing,
    grid: Grid,
    times: np.ndarray,  # [frames], of `latent_times`
) -> Tensor:  # [frames (query), frames (key), height * width, 2]
    """Where the content of each cell goes, by the drawing.

    A cell shows the last object that covers its middle, or else what the camera shows; if there is neither,
    it is free. It is also free towards a frame in which its content is outside, or hidden by an object. An
    object that covers no cell's middle is shown by the cell around its centre.
    """
    layers = layers_of(drawing, (grid.width, grid.height), times)
    places = _cell_places(grid)
    target = np.full((grid.frames, grid.frames, len(places), 2), np.nan)
    for query in range(grid.frames):
        shows = np.full(len(places), -1)  # the layer that each cell shows
        for number, layer in enumerate(layers):
            shows[layer.cells(query, places)] = number
        for number, layer in enumerate(layers):
            cells = shows == number
            for key in range(grid.frames):
                reached = layer.moved(query, key, places[cells])
                hidden = [above.covers(key, reached) for above in layers[number + 1 :]]
                free = np.any(hidden, axis=0)[..., None] if hidden else False
                target[query, key, cells] = np.where(free, np.nan, reached - places[cells])
    return inside(torch.from_numpy(target), grid).float()


def remarks(drawing: Drawing, grid: Grid, times: np.ndarray) -> list[str]:
    """What is accepted but may surprise, a line for each: small objects, and those that leave the frame."""
    token = np.array([1 / grid.width, 1 / grid.height])
    lines = []
    for number, figure in enumerate(drawing.figures, start=1):
        center, size = figure.at(times)
        beyond = (np.abs(center - 0.5) > 0.5 - size / 2 + 1e-9).any(axis=-1)
        absent = (np.abs(center - 0.5) >= 0.5 + size / 2).any(axis=-1)
        small = (size < token * (1 - 1e-9)).any(axis=-1)
        if absent.all():
            lines.append(f"object {number} is never in the frame: nothing is asked of it")
        elif beyond.any():
            lines.append(
                f"object {number} leaves the frame at time {_first(times, beyond)}: what is outside is free"
            )
        if small.any():
            lines.append(
                f"object {number} is smaller than a token, {token[0]:.3f} x {token[1]:.3f} of the frame, at "
                f"time {_first(times, small)}: it moves the tokens whose middle it covers, at least one"
            )
    return lines


def _first(times: np.ndarray, true: np.ndarray) -> str:
    return f"{times[true][0]:.2f}"


def _cell_places(grid: Grid) -> np.ndarray:
    """The middle of each cell, [height * width, 2], in patches from the frame's top left corner."""
    y, x = np.mgrid[: grid.height, : grid.width]
    return np.stack([x.ravel(), y.ravel()], axis=-1) + 0.5
