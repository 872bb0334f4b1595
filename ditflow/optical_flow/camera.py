"""The camera's part of a motion: one motion of the whole frame, fitted so that objects do not count."""

from __future__ import annotations

import numpy as np

ROUNDS = 12  # of reweighting
NOISE = 1 / 32  # cells: residuals below this are not told apart
PAIRS = 256  # of points, whose similarities are tried


def camera_motion(
    flow: np.ndarray,  # [steps, rows, columns, 2] cells
    trust: np.ndarray,  # [steps, rows, columns]
) -> np.ndarray:  # [steps, rows, columns, 2] cells
    """The affine motion that most of the frame shares, in each step."""
    return np.stack([_affine(*step) for step in zip(flow, trust, strict=True)])


def similarity(
    places: np.ndarray,  # [points] complex: x + iy, in cells
    flow: np.ndarray,  # [points] complex: where the content of each place goes, less the place
) -> tuple[complex, complex]:
    """Factor and offset of the shift, rotation and zoom that most points share: `place * factor + offset`.

    The fit starts from the similarity of two points that has the smallest median residual.
    """
    one, other = np.random.default_rng(0).integers(len(places), size=(2, PAIRS))
    apart = places[one] != places[other]
    one, other = one[apart], other[apart]
    factors = (flow[one] - flow[other]) / (places[one] - places[other])
    starts = np.stack([flow[one] - factors * places[one], factors])  # [2, pairs]
    basis = np.stack([np.ones_like(places), places], axis=-1)
    best = np.argmin(np.median(np.abs(flow[:, None] - basis @ starts), axis=0))
    (offset,), (factor,) = _robust_fit(basis, flow[:, None], np.ones((len(flow), 1)), starts[:, best, None])
    return 1 + factor, offset


def _affine(flow: np.ndarray, trust: np.ndarray) -> np.ndarray:
    rows, columns, _ = flow.shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    basis = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    wanted, trusted = flow.reshape(-1, 2).astype(np.float64), trust.reshape(-1, 1) + 1e-3
    start = np.stack([np.median(wanted, axis=0), (0, 0), (0, 0)])
    motion = _robust_fit(basis, wanted, trusted, start)
    return (basis @ motion).reshape(flow.shape)


def _robust_fit(
    basis: np.ndarray,  # [points, terms]
    wanted: np.ndarray,  # [points, components]
    trusted: np.ndarray,  # [points, 1]
    start: np.ndarray,  # [terms, components]
) -> np.ndarray:  # [terms, components]
    """The coefficients with which the basis gives what most points want; all real, or all complex.

    Least squares, reweighted by the Geman-McClure function of the residuals, whose scale is their median.
    """
    motion = start
    for _ in range(ROUNDS):
        residual = np.linalg.norm(wanted - basis @ motion, axis=1, keepdims=True)
        scale = max(NOISE, 1.4826 * np.median(residual))  # a normal distribution's deviation
        weighted = (basis * (trusted / (1 + (residual / scale) ** 2) ** 2)).conj().T
        motion = np.linalg.lstsq(weighted @ basis, weighted @ wanted, rcond=None)[0]
    return motion
