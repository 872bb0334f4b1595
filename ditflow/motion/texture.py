"""A soft texture without end, as a sum of plane waves."""

from __future__ import annotations

import numpy as np

PER_OCTAVE = 24  # waves
SEEN = np.array([0.8, 1.2, 6, 12])  # wavelengths in a picture, in details: shorter and longer ones fade
WEIGHT = 0.3  # long waves are stronger: the amplitude is this power of the length
CONTRAST = 0.8  # larger makes more of the texture darkest or lightest


class Texture:
    """Smooth random shades of a plane. A picture from nearer shows finer details, as a real surface would."""

    def __init__(
        self,
        seed: int,
        detail: float,  # size of the finest details in a picture, pixels
        magnification: np.ndarray,  # of all pictures: their pixels for a unit of length on the plane
    ):
        finest, coarsest = SEEN[0] / magnification.max(), SEEN[-1] / magnification.min()
        octaves = np.log2(coarsest / finest)
        count = int(PER_OCTAVE * octaves)
        generator = np.random.default_rng(seed)
        lengths = detail * finest * 2 ** (octaves * (np.arange(count) + 0.5) / count)
        turns = generator.uniform(0, 2 * np.pi, count)
        self.detail = detail
        self.waves = 2 * np.pi / lengths[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
        self.phases = generator.uniform(0, 2 * np.pi, count)

    def shades(
        self,
        corner: np.ndarray,  # [3, 2] places on the plane of the first pixel, that to the right, that below
        height: int,
        width: int,
    ) -> np.ndarray:  # [height, width] float32, from 0 to 1
        """A picture of the plane: straight, turned or stretched."""
        first, right, below = corner @ self.waves.T
        right, below = right - first, below - first  # radians a pixel
        lengths = 2 * np.pi / np.maximum(np.hypot(right, below), 1e-9) / self.detail
        weights = np.interp(np.log2(lengths), np.log2(SEEN), [0, 1, 1, 0]) * lengths**WEIGHT
        weights /= np.sqrt(np.maximum((weights**2).sum() / 2, 1e-9))  # a standard deviation of 1
        # cos(row + column) = cos(row) cos(column) - sin(row) sin(column): all waves are one matrix product
        rows = np.arange(height)[:, None] * below + first + self.phases
        columns = np.arange(width)[:, None] * right
        along = np.concatenate([np.cos(rows) * weights, -np.sin(rows) * weights], axis=-1, dtype=np.float32)
        across = np.concatenate([np.cos(columns), np.sin(columns)], axis=-1, dtype=np.float32)
        return 0.5 + 0.5 * np.tanh(CONTRAST * (along @ across.T))
