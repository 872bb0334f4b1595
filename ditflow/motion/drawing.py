"""A drawn motion: what the camera does, and the paths of objects, by time.

Times are from 0, the first video frame, to 1, the last. Between two points values change linearly; before
the first point and after the last one they stay. Places and sizes are shares of the frame's width and height,
from its top left corner, x to the right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Camera:
    """How the camera moves. The content of the picture goes the opposite way.

    `pan` is where it looks, in frames of zoom 1: after (0.2, 0) a fifth of the width further to the right, so
    that the content is further to the left. `zoom` 2 shows the content twice as large, around the middle of
    the frame. `rotate` turns the camera clockwise, and so the content the other way.
    """

    times: np.ndarray  # [points]
    pan: np.ndarray  # [points, 2] shares of width and height
    zoom: np.ndarray  # [points, 1]
    rotate: np.ndarray  # [points, 1] degrees

    def at(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pan [times, 2], zoom [times] and rotation [times] in radians."""
        pan, zoom, rotate = (between(self.times, each, times) for each in (self.pan, self.zoom, self.rotate))
        return pan, zoom[:, 0], np.deg2rad(rotate[:, 0])


@dataclass(frozen=True)
class Figure:
    """An object: a box or an ellipse on a path, with content that moves and grows with it.

    Its places are those on the screen, whatever the camera does.
    """

    shape: Literal["box", "ellipse"]
    times: np.ndarray  # [points]
    center: np.ndarray  # [points, 2]
    size: np.ndarray  # [points, 2] width and height

    def at(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centre and size, [times, 2] each."""
        return between(self.times, self.center, times), between(self.times, self.size, times)


@dataclass(frozen=True)
class Drawing:
    """A drawn motion: the camera, if it was given, and objects, of which later ones lie over earlier ones."""

    camera: Camera | None
    figures: tuple[Figure, ...]


def between(
    points: np.ndarray,  # [points] times in rising order
    values: np.ndarray,  # [points, n]
    times: np.ndarray,  # [times]
) -> np.ndarray:  # [times, n]
    """The values at other times."""
    return np.stack([np.interp(times, points, column) for column in values.T], axis=-1)
