"""How well two videos agree in their motion, at the same place and time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ditflow.optical_flow.motion import MOVES, Motion

COMPARED = 0.05  # of the frame: with less in common there is no score


@dataclass(frozen=True)
class Agreement:
    """The agreement of a result's motion with a clip's; a number is None if there is nothing to judge by.

    An agreement is `1 - sum |a - b| / (sum |a| + sum |b|)`, weighted by the trust in both: 1 for the same
    motion, 0 for motion that has nothing in common.
    """

    score: float | None  # the mean of `whole` and `objects`, in which little object motion counts little
    whole: float | None  # of all motion
    camera: float | None  # of the motion that the whole frame shares; None if the camera stands in both
    objects: float | None  # of what is left; None if nothing moves but the camera
    direction: float | None  # mean cosine between the displacements, weighted by the shorter one's length
    reach: float | None  # how far the result's content goes, as a share of how far the clip's does
    compared: float  # share of the frame whose motion is known in both videos
    still: list[str]  # of "reference", "result": those in which nothing moves

    def as_mapping(self) -> dict[str, Any]:
        return asdict(self)


def agreement(reference: Motion, result: Motion) -> Agreement:
    """Compare a result with its clip over the steps of the shorter one; both on the same grid."""
    steps = min(len(reference.forward), len(result.forward))
    reference, result = reference.cut(steps), result.cut(steps)
    weights = reference.trust * result.trust
    compared = float(weights.mean()) if weights.size else 0.0
    videos = {"reference": reference, "result": result}
    still = [name for name, motion in videos.items() if motion.still] if weights.size else []
    if compared < COMPARED:
        return Agreement(None, None, None, None, None, None, compared, still)
    if still:
        score = float(len(still) == len(videos))
        return Agreement(score, score, None, None, None, None, compared, still)
    whole, _ = agree(reference.forward, result.forward, weights)
    camera, by_camera = agree(reference.camera, result.camera, np.ones_like(weights))
    objects, by_objects = agree(reference.objects, result.objects, weights)
    # the flow's own errors are a part of the objects' motion, and all of it if no object moves
    share = by_objects / (by_objects + MOVES)
    return Agreement(
        score=(whole + share * objects) / (1 + share),
        whole=whole,
        camera=camera if by_camera > MOVES else None,
        objects=objects if by_objects > MOVES else None,
        direction=_direction(reference.forward, result.forward, weights),
        reach=mean_length(result.forward, weights) / mean_length(reference.forward, weights),
        compared=compared,
        still=[],
    )


def agree(
    first: np.ndarray,  # [..., 2]
    second: np.ndarray,  # [..., 2]
    weights: np.ndarray,  # [...]
) -> tuple[float, float]:
    """`1 - sum |a - b| / (sum |a| + sum |b|)`, 1 if nothing moves; and the sum of the mean lengths."""
    lengths = mean_length(first, weights) + mean_length(second, weights)
    return (1 - mean_length(first - second, weights) / lengths if lengths else 1.0), lengths


def mean_length(vectors: np.ndarray, weights: np.ndarray) -> float:
    return float((np.linalg.norm(vectors, axis=-1) * weights).sum(dtype=np.float64) / weights.sum())


def _direction(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float | None:
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    moving = np.minimum(*lengths) > MOVES
    weights = np.where(moving, weights * np.minimum(*lengths), 0)
    if not weights.any():
        return None
    cosines = np.where(
        moving, (first * second).sum(axis=-1) / np.where(moving, lengths[0] * lengths[1], 1), 0
    )
    return float((cosines * weights).sum(dtype=np.float64) / weights.sum(dtype=np.float64))
