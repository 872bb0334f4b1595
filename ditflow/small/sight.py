"""Detect what a video of the small model shows: its colours, whether it has one object, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ditflow.small.vocabulary import COLOURS

SHADE = 0.35  # how far a backdrop's shades go towards grey
GREY = 128.0
CLEARLY_OTHER = 40.0  # of 255: a pixel this far from the background is not background
SMALLEST, LARGEST = 0.01, 0.2  # share of the picture that an object covers; 0.036 to 0.19 in made clips
WHOLE = 0.9  # share of the non-background pixels in the largest piece


@dataclass(frozen=True)
class Sight:
    """What was detected. If there is only background, the colour is None and the centroids are NaN."""

    background: str  # one of COLOURS
    colour: str | None  # the commonest of the other pixels
    coverage: np.ndarray  # [frames, height, width] 0 ... 1: how far a pixel is from the background
    pieces: np.ndarray  # [frames, height, width] bool: the largest connected non-background piece
    centroids: np.ndarray  # [frames, 2] float64, (x, y) in pixels
    coherent: bool  # every frame has one object, of the size of a shape

    @property
    def acceleration(self) -> np.ndarray:
        """How much the centroid's velocity changes, [frames - 2], pixels/frame²."""
        return np.linalg.norm(np.diff(self.centroids, n=2, axis=0), axis=1)


def look(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
) -> Sight:
    """Detect one object on a still background of one colour in many shades."""
    pixels = frames.astype(np.float32)
    distances = {name: np.linalg.norm(pixels - nearest_shade(pixels, name), axis=-1) for name in COLOURS}
    names = np.array(list(COLOURS))[np.argmin(list(distances.values()), axis=0)]
    edges = np.concatenate([names[:, [0, -1]].ravel(), names[:, :, [0, -1]].ravel()])
    background = _commonest(edges)
    other = distances[background] > CLEARLY_OTHER
    colour = _commonest(names[other]) if other.mean() > SMALLEST / 2 else None
    if colour is None:
        nothing = np.zeros(frames.shape[:3])
        return Sight(background, None, nothing, nothing > 0, np.full((len(frames), 2), np.nan), False)

    shade = nearest_shade(pixels, background)
    contrast = np.linalg.norm(np.array(COLOURS[colour], np.float32) - shade, axis=-1)
    coverage = np.clip(distances[background] / np.maximum(contrast, CLEARLY_OTHER), 0, 1)
    mask = coverage > 0.5
    pieces = np.stack([largest_piece(frame) for frame in mask])
    sizes, wholes = pieces.sum(axis=(1, 2)), mask.sum(axis=(1, 2))
    shares = sizes / mask[0].size
    coherent = bool(((sizes >= WHOLE * wholes) & (shares > SMALLEST) & (shares < LARGEST)).all())
    return Sight(background, colour, coverage, pieces, _centroids(coverage, pieces), coherent)


def nearest_shade(pixels: np.ndarray, name: str) -> np.ndarray:
    """The shade of this backdrop colour that is nearest to each pixel [..., 3]."""
    pure = np.array(COLOURS[name], np.float32)
    way = SHADE * (GREY - pure)
    return pure + np.clip((pixels - pure) @ way / (way @ way), 0, 1)[..., None] * way


def largest_piece(
    mask: np.ndarray,  # [height, width] bool
) -> np.ndarray:
    """The largest piece of pixels connected by their sides; all False if the mask is empty."""
    if not mask.any():
        return mask
    labels = np.arange(1, mask.size + 1).reshape(mask.shape) * mask  # the largest in a piece spreads
    while True:
        padded = np.pad(labels, 1)
        sides = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        grown = np.maximum.reduce([labels, *sides]) * mask
        if (grown == labels).all():
            break
        labels = grown
    found, counts = np.unique(labels[mask], return_counts=True)
    return labels == found[counts.argmax()]


def _commonest(names: np.ndarray) -> str:
    found, counts = np.unique(names, return_counts=True)
    return str(found[counts.argmax()])


def _centroids(coverage: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Centres of mass [frames, 2] of the pieces with the soft edge around them."""
    near = pieces.copy()
    for axis in (1, 2):
        near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
    weights = coverage * near
    y, x = np.mgrid[: weights.shape[1], : weights.shape[2]]
    masses = weights.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):  # an empty frame gives NaN
        return np.stack([(weights * place).sum(axis=(1, 2)) / masses for place in (x, y)], axis=1)
