"""Motion fidelity: how well the tracks of a result match those of its clip (Yatim et al., CVPR 2024, eq. 9).

The similarity of two tracks is the mean over frame steps of the cosine between their displacements.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ditflow.evaluation.tracks import Tracks

MOVES = 0.01  # of the frame's diagonal: a track that stays closer to its start is still


@dataclass(frozen=True)
class PaperFidelity:
    """The score of the paper's released evaluation."""

    score: float | None  # None if every track of a video was dropped
    dropped: dict[str, int]  # tracks of each video for which the formula is undefined


@dataclass(frozen=True)
class MotionFidelity:
    """The bidirectional score, and the number of tracks behind it."""

    score: float | None  # -1 ... 1; None if no point of a video could be tracked
    moving: dict[str, int]  # moving tracks of each video, which are compared
    found: dict[str, int]  # points tracked to the last frame

    @property
    def still(self) -> list[str]:
        """The videos in which points were tracked but none moves."""
        return [video for video, count in self.moving.items() if self.found[video] and not count]

    def as_mapping(self) -> dict[str, Any]:
        return asdict(self) | {"still": self.still}


def paper_fidelity(reference: Tracks, result: Tracks) -> PaperFidelity:
    """Mean over the result's tracks of the largest similarity to a track of the reference, as released.

    The released formula subtracts 1 from the similarity of tracks of the same index, so identical videos do
    not score 1. It also divides by the length of every step, so a track that pauses for a step makes the sum
    NaN. Such tracks are dropped here and counted.
    """
    ours, theirs = _same_length(result, reference)
    (ours, kept), (theirs, kept_reference) = (
        _directions(ours, result.found),
        _directions(theirs, reference.found),
    )
    similarity = _similarity(ours, theirs) - np.eye(len(ours), len(theirs))
    dropped = {"reference": int((~kept_reference).sum()), "result": int((~kept).sum())}
    counted = similarity[np.ix_(kept, kept_reference)]
    return PaperFidelity(float(counted.max(axis=1).mean()) if counted.size else None, dropped)


def bidirectional_fidelity(reference: Tracks, result: Tracks) -> MotionFidelity:
    """The similarity of each moving track to its best match in the other video, averaged over both videos.

    Tracks that stay within MOVES of the diagonal are left out. In the others, a step shorter than MOVES of
    the diagonal divided by the number of steps is a pause; its similarity is 1 to a pause and 0 to any
    direction. If nothing moves in either video the score is 1; if nothing moves in one of them it is 0.
    """
    reference_places, result_places = _same_length(reference, result)
    ours, theirs = _moving(result, result_places), _moving(reference, reference_places)
    if not (result.found.any() and reference.found.any()):
        score = None
    elif len(ours) and len(theirs):
        similarity = _similarity(ours, theirs)
        score = float((similarity.max(axis=0).mean() + similarity.max(axis=1).mean()) / 2)
    else:
        score = float(len(ours) == len(theirs))
    moving = {"reference": len(theirs), "result": len(ours)}
    found = {"reference": int(reference.found.sum()), "result": int(result.found.sum())}
    return MotionFidelity(score, moving, found)


def _same_length(first: Tracks, second: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Both videos' places, cut to the frames of the shorter one."""
    frames = min(first.places.shape[1], second.places.shape[1])
    return first.places[:, :frames], second.places[:, :frames]


def _directions(places: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit displacements [tracks, steps, 2], and which tracks move in every step."""
    steps = np.diff(places, axis=1)
    lengths = np.hypot(steps[..., 0], steps[..., 1])[..., None]
    kept = found & (lengths > 0).all(axis=(1, 2))
    return np.divide(steps, lengths, out=np.zeros_like(steps), where=lengths > 0), kept


def _moving(tracks: Tracks, places: np.ndarray) -> np.ndarray:
    """The steps of moving tracks, [tracks, steps, 3]: (x, y, 0) is a direction, (0, 0, 1) a pause."""
    reach = np.hypot(*np.moveaxis(places - places[:, :1], -1, 0)).max(axis=1)
    places = places[tracks.found & (reach > MOVES * tracks.diagonal)]
    steps = np.diff(places, axis=1)
    lengths = np.hypot(steps[..., 0], steps[..., 1])[..., None]
    stands = lengths < MOVES * tracks.diagonal / max(1, steps.shape[1])
    directions = np.where(stands, 0, steps / np.where(stands, 1, lengths))
    return np.concatenate([directions, stands], axis=-1)


def _similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean over steps of the inner products, [tracks of the first, tracks of the second]."""
    steps = first.shape[1]
    return first.reshape(len(first), -1) @ second.reshape(len(second), -1).T / max(1, steps)
