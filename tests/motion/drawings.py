"""Drawings from a few numbers."""

import numpy as np

from ditflow.motion.drawing import Camera, Figure


def camera(*points):
    """From points (time, pan x, pan y, zoom, degrees)."""
    time, x, y, zoom, rotate = np.array(points, float).T
    return Camera(time, np.stack([x, y], axis=-1), zoom[:, None], rotate[:, None])


def figure(shape, *points):
    """From points (time, centre x, y, width, height)."""
    time, x, y, width, height = np.array(points, float).T
    return Figure(shape, time, np.stack([x, y], axis=-1), np.stack([width, height], axis=-1))


STILL = camera((0, 0, 0, 1, 0))
