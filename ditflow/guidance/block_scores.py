"""Scores how well blocks see a clip's motion, by their motion flow and a reference such as optical flow.

All flows are [frames (query), frames (key), tokens, 2] in latent patches. Pairs of a frame with itself do not
count, nor do places where the reference is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ditflow.optical_flow.agreement import agree

MOVES = 0.5  # latent patches: flow this long points to another token
LEAST_MOVING = 0.005  # share of the tokens: below it, nothing moves
SEES = 0.5  # correlation of a block that sees motion; docs/choosing-a-block.md says what chance reaches
LEAST_SCORE = 0.1
LEAST_BACKGROUND = 0.05  # share of the known pairs: below it, there is no background to speak of


@dataclass(frozen=True)
class BlockScore:
    """How well one block's flow agrees with the reference. A number is None if nothing can be compared."""

    correlation: float | None  # of both components, over the tokens that move
    agreement: float | None  # over them, as in `optical_flow.agreement.agree`
    stray: float | None  # share of the background's vectors that point to another token

    @property
    def score(self) -> float | None:
        """Agreement, times the share of the background that stays still."""
        return None if self.agreement is None else self.agreement * (1 - (self.stray or 0))


@dataclass(frozen=True)
class Choice:
    """The block to guide, or None if no block is clearly better than chance, and why."""

    block: int | None
    why: str


def moving_tokens(
    reference: np.ndarray,  # [..., frames, frames, tokens, 2]
) -> np.ndarray:  # [..., frames, tokens] bool
    """The tokens of each query frame whose content goes to another token in some key frame."""
    return (np.nan_to_num(_length(reference)) >= MOVES).any(axis=-2)


def score_block(
    flow: np.ndarray,  # [..., frames, frames, tokens, 2]
    reference: np.ndarray,  # the same
    moving: np.ndarray,  # [..., frames, tokens] bool; the other tokens are the background
) -> BlockScore:
    """Score the flow of one block, of one clip or of several clips together."""
    known = ~np.isnan(reference).any(axis=-1) & ~np.eye(reference.shape[-3], dtype=bool)[..., None]
    moving = np.broadcast_to(moving[..., None, :], known.shape)
    seen, true, background = flow[known & moving], reference[known & moving], flow[known & ~moving]
    has_background = len(background) and len(background) >= LEAST_BACKGROUND * known.sum()
    agreement, lengths = agree(seen, true, np.ones(len(seen))) if len(seen) else (None, 0.0)
    varies = len(seen) and np.ptp(seen) > 0 and np.ptp(true) > 0
    return BlockScore(
        float(np.corrcoef(seen.ravel(), true.ravel())[0, 1]) if varies else None,
        agreement if lengths else None,
        float((_length(background) >= MOVES).mean()) if has_background else None,
    )


def choose_block(scores: Mapping[int, Sequence[BlockScore]], moving: float) -> Choice:
    """The block with the best mean score over the noise levels, of those that see motion.

    `scores`: of each block, one for each noise level. `moving`: the share of the tokens that move.
    """
    if moving < LEAST_MOVING:
        return Choice(None, f"nothing moves: {moving:.1%} of the tokens go as far as half a token")
    seen = {block: fmean(each.correlation or 0 for each in found) for block, found in scores.items()}
    means = {block: fmean(each.score or 0 for each in found) for block, found in scores.items()}
    most = max(seen, key=seen.get)
    if seen[most] < SEES:
        return Choice(
            None,
            f"none sees this clip's motion: block {most} correlates best, with {seen[most]:.2f}, and less "
            f"than {SEES} may be chance",
        )
    best = max((block for block in means if seen[block] >= SEES), key=means.get)
    if means[best] < LEAST_SCORE:
        return Choice(
            None, f"block {best} follows what moves, but its background moves too (score {means[best]:.2f})"
        )
    return Choice(best, f"its score, {means[best]:.2f}, is the best of the blocks that see the motion")


def _length(flow: np.ndarray) -> np.ndarray:
    return np.linalg.norm(flow, axis=-1)
