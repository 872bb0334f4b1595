"""How well a result's motion agrees with its clip's, with what unrelated motion would score beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditflow.optical_flow.agreement import agreement
from ditflow.optical_flow.dense import grid_of
from ditflow.optical_flow.motion import Motion, measure_motion

CONTROLS = {"mirrored": Motion.mirrored, "reversed": Motion.reversed, "shifted": Motion.shifted}


@dataclass(frozen=True)
class Pair:
    """The motion of a clip and of a result, on one grid."""

    clip: Motion
    result: Motion

    @classmethod
    def measure(
        cls,
        clip: np.ndarray,  # [frames, height, width, 3] uint8
        result: np.ndarray,  # the same; count and size may differ
    ) -> Pair:
        grid = grid_of(*clip.shape[1:3])
        return cls(measure_motion(clip, *grid), measure_motion(result, *grid))

    def as_mapping(self) -> dict[str, Any]:
        """The agreement with the clip, and its score with the clip mirrored, reversed and shifted in time."""
        changed = {name: agreement(change(self.clip), self.result).score for name, change in CONTROLS.items()}
        return agreement(self.clip, self.result).as_mapping() | {"controls": changed}


@dataclass(frozen=True)
class Matrix:
    """The score of every result against every clip."""

    clips: list[str]  # names
    results: list[str]  # names
    scores: list[list[float | None]]  # [results][clips]
    own: list[int]  # each result's clip

    @property
    def own_first(self) -> int:
        """How many results agree with their own clip more than with any other."""
        return sum(_is_first(*row) for row in zip(self.scores, self.own, strict=True))

    def as_mapping(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("clips", "results", "scores", "own", "own_first")}


def _is_first(scores: list[float | None], own: int) -> bool:
    others = [score for clip, score in enumerate(scores) if clip != own and score is not None]
    return scores[own] is not None and all(scores[own] > other for other in others)


def match(
    pairs: Sequence[Pair],
    clips: Sequence[str],  # what tells the pairs' clips apart
    results: Sequence[str],  # names
) -> Matrix | None:
    """Compare every result with every clip. None if there is only one clip."""
    names = list(dict.fromkeys(clips))
    if len(names) < 2:
        return None
    motions = [pairs[clips.index(name)].clip for name in names]
    scores = [
        [agreement(motion.on_grid(pair.result), pair.result).score for motion in motions] for pair in pairs
    ]
    return Matrix(names, list(results), scores, [names.index(clip) for clip in clips])
