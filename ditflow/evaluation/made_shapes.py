"""Check whether a video of the small model shows what its prompt says."""

from __future__ import annotations

import math
import re

import numpy as np

from ditflow.small.clips import CIRCUMRADIUS, HALF_SIDE
from ditflow.small.sight import Sight, look
from ditflow.small.vocabulary import COLOURS, SHAPES

INSIDE = {  # of a shape around (0, 0) with the area of a circle of radius 1
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= HALF_SIDE,
    "triangle": lambda x, y: np.maximum(y, np.abs(x) * math.sqrt(0.75) - y / 2) <= CIRCUMRADIUS / 2,
}


def prompt_match(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    prompt: str,
) -> dict[str, bool] | None:
    """Whether a video's colour, shape and background match; None if the prompt is not a caption."""
    said = is_caption(prompt)
    if not said:
        return None
    sight = look(frames)
    return {
        "colour": sight.colour == said[1],
        "shape": shape_of(sight) == said[2],
        "background": sight.background == said[3],
    }


def is_caption(prompt: str) -> re.Match[str] | None:
    """Match a caption of the small model; the groups are colour, shape and background."""
    said = re.fullmatch(r"an? (\w+) (\w+) on an? (\w+) background", prompt.strip().lower())
    return said if said and {said[1], said[3]} <= COLOURS.keys() and said[2] in SHAPES else None


def shape_of(sight: Sight) -> str | None:
    """The one of SHAPES that most frames look like; None if no object is seen."""
    y, x = np.mgrid[: sight.pieces.shape[1], : sight.pieces.shape[2]]
    votes = [
        _nearest_shape(piece, x - centre_x, y - centre_y)
        for piece, (centre_x, centre_y) in zip(sight.pieces, sight.centroids, strict=True)
        if piece.any()
    ]
    return max(SHAPES, key=votes.count) if votes else None


def _nearest_shape(piece: np.ndarray, x: np.ndarray, y: np.ndarray) -> str:
    """The shape that fits a piece best at the same area and centre; arrays are [height, width]."""
    radius = math.sqrt(piece.sum() / math.pi)
    return max(SHAPES, key=lambda shape: (INSIDE[shape](x / radius, y / radius) == piece).sum())
