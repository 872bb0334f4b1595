"""Made clips to test with, and where the mass of a picture is."""

import itertools

import numpy as np

from ditflow.small.clips import made_clip


def first_seed(**wanted):
    """The lowest seed whose scene is plain and as wanted."""
    for seed in itertools.count():
        scene = made_clip(seed, frames=2).scene
        if scene.backdrop == "plain" and all(getattr(scene, name) == it for name, it in wanted.items()):
            return seed


def measured_centroids(weights):
    """(x, y) of the centre of mass of each frame, [frames, 2], from weights [frames, height, width]."""
    height, width = weights.shape[1:]
    masses = weights.sum(axis=(1, 2))
    x, y = weights.sum(axis=1) @ np.arange(width), weights.sum(axis=2) @ np.arange(height)
    return np.stack([x / masses, y / masses], axis=1)
