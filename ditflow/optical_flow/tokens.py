"""Optical flow in the form of a motion flow: where the content of each token goes, in all latent frames.

A latent frame stands for the middle one of the video frames that it encodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ditflow.optical_flow.dense import CELL, cell_means, contrasted, flows, opencv, sample

MISSED = 1.0  # pixels: there and back again, content that was not hidden comes this close to its start
STRUCTURE = 4.0  # grey levels, standard deviation: flow on smoother surfaces is a guess
NEIGHBOURHOOD = 3 * CELL + 1  # pixels: the window in which two frames look alike or not
ALIKE = 1.0  # grey levels by which still content may fit worse than moved content
UNLIKE = 0.25  # share of the contrast; content that differs by more is other content
SEEN = 0.5  # share of a token's pixels that must be known


def token_flow(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    grid: tuple[int, int, int],  # latent frames, rows and columns of tokens
    spans: Sequence[range],  # of `ModelFamily.latent_spans`
) -> np.ndarray:
    """Displacements (x, y) in latent patches, [frames (query), frames (key), rows * columns, 2] float32.

    NaN where they are unknown: the content leaves the frame or is hidden on the way, or it is so smooth that
    its motion cannot be seen. Content that fits both frames as well without moving is still.

    Raises DitflowError if OpenCV is not installed.
    """
    count, rows, columns = grid
    shown = [min(span[len(span) // 2], len(frames) - 1) for span in spans]
    levels = list(contrasted(frames, rows, columns))
    steps = list(flows(frames, rows, columns))
    later = [(forward, _returns(forward, backward)) for forward, backward in steps]
    earlier = [(backward, _returns(backward, forward)) for forward, backward in steps]
    pictures = [levels[frame].astype(np.float32) for frame in shown]
    found = np.zeros((count, count, rows * columns, 2), np.float32)
    for query, start in enumerate(shown):
        ways = enumerate(_follow(later[start:]), start + 1), enumerate(_follow(earlier[:start][::-1]), 1)
        reached = {frame: way for frame, way in ways[0] if frame in shown}
        reached |= {start - back: way for back, way in ways[1] if start - back in shown}
        for key, end in enumerate(shown):
            if end != start:
                found[query, key] = _tokens(pictures[query], pictures[key], *reached[end])
    return found


def _returns(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """1 where following a step [height, width, 2], then the opposite one, leads back, else 0."""
    miss = there + sample(back, there)
    return (np.hypot(miss[..., 0], miss[..., 1]) <= MISSED).astype(np.float32)


def _follow(steps: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """After each step (flow, where it returns): where each pixel has moved, and whether it is still seen."""
    moved = None
    for step, returns in steps:
        if moved is None:
            height, width = step.shape[:2]
            y, x = np.mgrid[:height, :width].astype(np.float32)
            moved, seen = np.zeros_like(step), np.ones((height, width), bool)
        seen = seen & (sample(returns, moved) > 0.5)
        moved = moved + sample(step, moved)
        to_x, to_y = x + moved[..., 0], y + moved[..., 1]
        seen &= (to_x > -0.5) & (to_x < width - 0.5) & (to_y > -0.5) & (to_y < height - 0.5)
        yield moved, seen


def _tokens(
    before: np.ndarray,  # [height, width] the query frame
    after: np.ndarray,  # the key frame
    moved: np.ndarray,  # [height, width, 2] pixels
    seen: np.ndarray,  # [height, width] bool
) -> np.ndarray:  # [tokens, 2] patches, NaN where unknown
    """The mean of what is known in each token."""
    cv2, window = opencv(), (NEIGHBOURHOOD, NEIGHBOURHOOD)
    unmoved, carried = np.abs(after - before), np.abs(sample(after, moved) - before)
    fits = np.minimum(cv2.blur(carried, window), UNLIKE * _contrast(before, NEIGHBOURHOOD))
    still = cv2.blur(unmoved, window) <= fits + ALIKE
    known = still | (seen & (_contrast(before, CELL) >= STRUCTURE))
    share = cell_means(known[..., None].astype(np.float32))
    total = cell_means(np.where(known & ~still, 1, 0)[..., None] * moved)
    means = np.where(share >= SEEN, total / np.maximum(share, SEEN) / CELL, np.nan)
    return means.reshape(-1, 2)


def _contrast(picture: np.ndarray, side: int) -> np.ndarray:
    """The standard deviation in a window around each pixel."""
    cv2, window = opencv(), (side, side)
    return np.sqrt(np.maximum(cv2.blur(picture**2, window) - cv2.blur(picture, window) ** 2, 0))
