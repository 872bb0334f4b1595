"""Motion fidelity: how well the tracks of a result match those of its clip (Yatim et al., CVPR 2024, eq. 9).

Two tracks are as alike as the mean over frame steps of the cosine between their displacements.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ditflow.evaluation.tracks import Tracks

MOVES = 0.01  # of the frame's diagonal: a track that goes less far from where it began is still


@dataclass(frozen=True)
class PaperFidelity:
    """The released evaluation's number."""

    score: float | None  # None where the formula dropped every track of one video
    dropped: dict[str, int]  # tracks of each video that the formula has no value for


@dataclass(frozen=True)
class MotionFidelity:
    """Our number, and what it is taken from."""

    score: float | None  # -1 ... 1; None where not one point of a video could be followed
    moving: dict[str, int]  # tracks of each video that take part
    found: dict[str, int]  # tracks that were followed to the end

    @property
    def still(self) -> list[str]:
        """The videos that were followed and in which nothing moves."""
        return [video for video, count in self.moving.items() if self.found[video] and not count]

    def as_mapping(self) -> dict[str, Any]:
        return asdict(self) | {"still": self.still}


def paper_fidelity(reference: Tracks, result: Tracks) -> PaperFidelity:
    """Mean over the result's tracks of the largest likeness to a track of the reference, its own less one.

    The released formula subtracts 1 from the likeness of tracks of the same index, so identical videos do
    not score 1 in it; and it divides by the length of every step, so that one point which stands still
    makes its sum NaN. Such tracks are dropped here and counted.
    """
    ours, theirs = _same_length(result, reference)
    (ours, kept), (theirs, kept_reference) = (
        _directions(ours, result.found),
        _directions(theirs, reference.found),
    )
    alike = _likeness(ours, theirs) - np.eye(len(ours), len(theirs))
    dropped = {"reference": int((~kept_reference).sum()), "result": int((~kept).sum())}
    counted = alike[np.ix_(kept, kept_reference)]
    return PaperFidelity(float(counted.max(axis=1).mean()) if counted.size else None, dropped)


def bidirectional_fidelity(reference: Tracks, result: Tracks) -> MotionFidelity:
    """The best match of each moving track in the other video, both ways: half the sum of the two means.

    Tracks that stay within MOVES of the diagonal take no part. Of the others, a step shorter than their
    share of it stands still: standing is like standing (1) and unlike any direction (0). Where nothing
    moves in both videos the score is 1, where nothing moves in one it is 0.
    """
    reference_places, result_places = _same_length(reference, result)
    ours, theirs = _moving(result, result_places), _moving(reference, reference_places)
    if not (result.found.any() and reference.found.any()):
        score = None
    elif len(ours) and len(theirs):
        alike = _likeness(ours, theirs)
        score = float((alike.max(axis=0).mean() + alike.max(axis=1).mean()) / 2)
    else:
        score = float(len(ours) == len(theirs))
    moving = {"reference": len(theirs), "result": len(ours)}
    found = {"reference": int(reference.found.sum()), "result": int(result.found.sum())}
    return MotionFidelity(score, moving, found)


def _same_length(first: Tracks, second: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Both videos' places, for as many frames as the shorter one has."""
    frames = min(first.places.shape[1], second.places.shape[1])
    return first.places[:, :frames], second.places[:, :frames]


def _directions(places: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit displacements [tracks, steps, 2], and which tracks have one in every step."""
    steps = np.diff(places, axis=1)
    lengths = np.hypot(steps[..., 0], steps[..., 1])[..., None]
    kept = found & (lengths > 0).all(axis=(1, 2))
    return np.divide(steps, lengths, out=np.zeros_like(steps), where=lengths > 0), kept


def _moving(tracks: Tracks, places: np.ndarray) -> np.ndarray:
    """The steps of tracks that move, [tracks, steps, 3]: a direction, or (0, 0, 1) for standing still."""
    reach = np.hypot(*np.moveaxis(places - places[:, :1], -1, 0)).max(axis=1)
    places = places[tracks.found & (reach > MOVES * tracks.diagonal)]
    steps = np.diff(places, axis=1)
    lengths = np.hypot(steps[..., 0], steps[..., 1])[..., None]
    stands = lengths < MOVES * tracks.diagonal / max(1, steps.shape[1])
    directions = np.where(stands, 0, steps / np.where(stands, 1, lengths))
    return np.concatenate([directions, stands], axis=-1)


def _likeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean over steps of the inner products, [tracks of the first, tracks of the second]."""
    steps = first.shape[1]
    return first.reshape(len(first), -1) @ second.reshape(len(second), -1).T / max(1, steps)
