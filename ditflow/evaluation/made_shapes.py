"""What a video of the small model's world shows: where its shape is, and whether it is the one asked for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from ditflow.small.clips import CIRCUMRADIUS, HALF_SIDE
from ditflow.small.quality.sight import nearest_shade
from ditflow.small.vocabulary import COLOURS, SHAPES

ROUNDS = 8  # of clustering: two colours settle in fewer
SMALLEST = 0.01  # of the picture: less of the other colour is no shape

INSIDE = {  # of a shape around (0, 0) with the area of a circle of radius 1
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= HALF_SIDE,
    "triangle": lambda x, y: np.maximum(y, np.abs(x) * math.sqrt(0.75) - y / 2) <= CIRCUMRADIUS / 2,
}


@dataclass(frozen=True)
class FoundShape:
    """One coloured shape before a background, as far as it can be seen."""

    centroids: np.ndarray  # [frames, 2] float64, (x, y) in pixels; NaN where no shape is seen
    colour: str  # the nearest one of COLOURS
    background: str
    shape: str | None  # the nearest one of SHAPES; None where none is seen


def find_shape(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
) -> FoundShape:
    """Split the colours of a video in two; what has not the border's colour is the shape."""
    mask, background, colour = _two_colours(frames.astype(np.float64))
    seen = mask.mean(axis=(1, 2)) >= SMALLEST
    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]]
    centroids = np.full((len(mask), 2), np.nan)
    votes = []
    for index in np.flatnonzero(seen):
        centroids[index] = x[mask[index]].mean(), y[mask[index]].mean()
        votes.append(_nearest_shape(mask[index], x - centroids[index, 0], y - centroids[index, 1]))
    shape = max(SHAPES, key=votes.count) if votes else None
    return FoundShape(centroids, _nearest_colour(colour), _nearest_colour(background), shape)


def prompt_match(frames: np.ndarray, prompt: str) -> dict[str, bool] | None:
    """Whether a video's colour, shape and background are the prompt's; None for a prompt of another form."""
    said = is_caption(prompt)
    if not said:
        return None
    found = find_shape(frames)
    return {
        "colour": found.colour == said[1],
        "shape": found.shape == said[2],
        "background": found.background == said[3],
    }


def is_caption(prompt: str) -> re.Match[str] | None:
    """Whether a prompt is one of the small model's, with its colour, shape and background."""
    said = re.fullmatch(r"an? (\w+) (\w+) on an? (\w+) background", prompt.strip().lower())
    return said if said and {said[1], said[3]} <= COLOURS.keys() and said[2] in SHAPES else None


def _two_colours(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the second colour is [frames, height, width], the first colour and the second."""
    pixels = frames.reshape(-1, 3)
    border = np.concatenate([frames[:, [0, -1]].reshape(-1, 3), frames[:, :, [0, -1]].reshape(-1, 3)])
    first = np.median(border, axis=0)
    away = np.linalg.norm(pixels - first, axis=1)
    second = pixels[away >= np.percentile(away, 98)].mean(axis=0)
    for _ in range(ROUNDS):
        nearer = np.linalg.norm(pixels - second, axis=1) < np.linalg.norm(pixels - first, axis=1)
        if not nearer.any() or nearer.all():
            break
        first, second = pixels[~nearer].mean(axis=0), pixels[nearer].mean(axis=0)
    return nearer.reshape(frames.shape[:3]), first, second


def _nearest_colour(colour: np.ndarray) -> str:
    """By distance to each colour's shades."""
    return min(COLOURS, key=lambda name: np.linalg.norm(colour - nearest_shade(colour, name)))


def _nearest_shape(mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> str:
    """The shape of the same area and centre that covers the same pixels best; all [height, width]."""
    radius = math.sqrt(mask.sum() / math.pi)
    return max(SHAPES, key=lambda shape: (INSIDE[shape](x / radius, y / radius) == mask).sum())
