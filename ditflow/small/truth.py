"""The true motion of a made clip, in the form of a motion flow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange

from ditflow.errors import DitflowError
from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.settings import Settings
from ditflow.small.clips import CLIP_MARK, made_clip
from ditflow.video.writing import read_metadata


def true_flow(
    centroids: np.ndarray,  # [video frames, 2] (x, y) in pixels
    radii: np.ndarray,  # [video frames] pixels
    width: int,  # of a frame, pixels
    grid: Grid,
    spans: Sequence[range],  # the video frames of each latent frame
) -> tuple[np.ndarray, np.ndarray]:  # [frames, frames, height * width, 2], [frames, height * width]
    """The displacement of each token's content, (x, y) in patches, and which tokens are inside the shape.

    A latent frame is the mean of its video frames. Outside the shape nothing moves.
    """
    patch = width / grid.width  # pixels
    centres = _latent_means((centroids + 0.5) / patch - 0.5, spans)
    radii = _latent_means(radii / patch, spans)
    y, x = np.mgrid[: grid.height, : grid.width]
    offsets = np.stack([x.ravel(), y.ravel()], axis=-1) - centres[:, None]  # [frames, tokens, 2]
    inside = np.linalg.norm(offsets, axis=-1) < np.maximum(radii, 0.71)[:, None]  # at least one token
    growth = radii[None, :] / radii[:, None]  # [query frame, key frame]
    moved = rearrange(centres, "k c -> 1 k 1 c") - rearrange(centres, "q c -> q 1 1 c")
    flow = moved + (growth[..., None, None] - 1) * offsets[:, None]
    return flow * inside[:, None, :, None], inside


def _latent_means(values: np.ndarray, spans: Sequence[range]) -> np.ndarray:
    """Means over the video frames of each latent frame; beyond the clip's end its last frame is repeated."""
    last = len(values) - 1
    return np.stack([values[[min(index, last) for index in span]].mean(axis=0) for span in spans])


def true_flow_of(settings: Settings, grid: Grid) -> np.ndarray | None:
    """The true flow of the settings' clip [frames, frames, height * width, 2], or None if it is unknown.

    It is known for videos that `python -m ditflow.small.clips` wrote, if the settings keep their proportions
    and rate.
    """
    seed = _seed_of(Path(settings.video))
    if seed is None or settings.clip_rate:
        return None
    clip = made_clip(seed)
    height, width = clip.frames.shape[1:3]
    if settings.size.width * height != settings.size.height * width:
        return None
    shown = slice(settings.start, settings.start + settings.frames * settings.stride, settings.stride)
    spans = family_of(settings.model).latent_spans(settings.frames)
    return true_flow(clip.centroids[shown], clip.scene.radii[shown], width, grid, spans)[0]


def _seed_of(video: Path) -> int | None:
    if not video.is_file():
        return None
    try:
        said = read_metadata(video)
    except DitflowError:
        return None
    found = re.fullmatch(rf"{CLIP_MARK}(\d{{1,18}})", said or "")
    return int(found[1]) if found else None
