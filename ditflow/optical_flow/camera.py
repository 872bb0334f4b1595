"""The camera's part of a motion: an affine motion of the whole frame, fitted so that objects do not count."""

from __future__ import annotations

import numpy as np

ROUNDS = 12  # of reweighting
NOISE = 1 / 32  # cells: residuals below this are not told apart


def camera_motion(
    flow: np.ndarray,  # [steps, rows, columns, 2] cells
    trust: np.ndarray,  # [steps, rows, columns]
) -> np.ndarray:  # [steps, rows, columns, 2] cells
    """The affine motion that most of the frame shares, in each step.

    Least squares, reweighted by the Geman-McClure function of the residuals, whose scale is their median.
    """
    return np.stack([_fit(*step) for step in zip(flow, trust, strict=True)])


def _fit(flow: np.ndarray, trust: np.ndarray) -> np.ndarray:
    rows, columns, _ = flow.shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    basis = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    wanted, trusted = flow.reshape(-1, 2).astype(np.float64), trust.reshape(-1, 1) + 1e-3
    motion = np.zeros((3, 2))
    motion[0] = np.median(wanted, axis=0)
    for _ in range(ROUNDS):
        residual = np.linalg.norm(wanted - basis @ motion, axis=1, keepdims=True)
        scale = max(NOISE, 1.4826 * np.median(residual))  # a normal distribution's deviation
        weights = trusted / (1 + (residual / scale) ** 2) ** 2
        motion = np.linalg.lstsq((basis * weights).T @ basis, (basis * weights).T @ wanted, rcond=None)[0]
    return (basis @ motion).reshape(flow.shape)
