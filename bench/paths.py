"""Measures of an object's path in a video against the true path of the clip that it should follow.

Paths are [frames, 2] places (x, y) in pixels; a frame in which no object is seen is NaN.
"""

import numpy as np

from ditflow.small.pipeline import COMPRESSION

SPAN = COMPRESSION  # frames: guidance moves latent frames, inside of one only the autoencoder does


def displacement_cosine(found: np.ndarray, true: np.ndarray) -> float:
    """Path fidelity: mean cosine of displacements in SPAN frames; one that is not seen counts 0."""
    found, true = _displacements(found), _displacements(true)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(true, axis=1)
    known = lengths > 0  # and not NaN
    cosines = (found[known] * true[known]).sum(axis=1) / lengths[known]
    return float(cosines.sum() / len(true))


def trajectory_correlation(found: np.ndarray, true: np.ndarray) -> float:
    """Pearson's, of both coordinates together, over the frames in which the shape is seen; else 0."""
    seen = ~np.isnan(found).any(axis=1)
    if seen.sum() < 2:
        return 0.0
    found, true = (places[seen] - places[seen].mean(axis=0) for places in (found, true))
    norms = np.linalg.norm(found) * np.linalg.norm(true)
    return float((found * true).sum() / norms) if norms else 0.0


def path_error(found: np.ndarray, true: np.ndarray) -> float:
    """RMS distance to the true path, as a share of its length; a frame without an object counts 1."""
    length = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
    distances = np.linalg.norm(found - true, axis=1) / length
    return float(np.sqrt(np.mean(np.nan_to_num(distances, nan=1.0) ** 2)))


def reach(found: np.ndarray, true: np.ndarray) -> float:
    """How far the object goes in SPAN frames, as a share of how far it should; unseen, it goes nowhere."""
    distances = (np.nansum(np.linalg.norm(_displacements(each), axis=1)) for each in (found, true))
    gone, should = distances
    return float(gone / should)


def growth(areas: np.ndarray) -> float:
    """Doublings of an object's width from its first SPAN frames to its last; 0 if it is not seen in either.

    areas: [frames], in any unit.
    """
    first, last = np.mean(areas[:SPAN]), np.mean(areas[-SPAN:])
    return float(np.log2(last / first) / 2) if first > 0 and last > 0 else 0.0


def _displacements(places: np.ndarray) -> np.ndarray:
    return places[SPAN:] - places[:-SPAN]
