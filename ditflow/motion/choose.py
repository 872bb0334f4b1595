"""Makes a run's chosen motion from its clip and from the files that its settings name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ditflow.errors import SettingsError
from ditflow.models.protocols import Grid
from ditflow.motion.camera import camera_flow, camera_target
from ditflow.motion.chosen import ChosenMotion
from ditflow.motion.drawing import Drawing
from ditflow.motion.drawn import drawn_target, latent_times, remarks
from ditflow.motion.edits import between_frames
from ditflow.motion.mask_file import read_mask
from ditflow.motion.masks import moving_mask, token_mask
from ditflow.motion.source import read_source
from ditflow.optical_flow.tokens import token_flow
from ditflow.settings import Settings
from ditflow.video import Clip

logger = logging.getLogger(__name__)


def choose_motion(
    settings: Settings,
    clip: Clip,
    drawing: Drawing | None,
    grid: Grid,
    spans: Sequence[range],  # of `ModelFamily.latent_spans`
    whole: Clip | None = None,  # the source that the clip was read from, if it is in memory
) -> ChosenMotion:
    """What the settings ask for. Reads the mask and the second clip.

    Raises DitflowError if one of them cannot be used, or if OpenCV is needed and not installed.
    """
    drawn = None if drawing is None else _drawn(settings, drawing, grid, spans)
    if not settings.changes_clip_motion:
        return ChosenMotion(settings, grid, drawn=drawn)
    needs_flow = settings.transfer == "camera" or settings.masked_by == "auto"
    flow = token_flow(clip.frames, grid, spans) if needs_flow else None
    camera = None
    if settings.transfer == "camera":
        camera = _camera(settings.video, flow, grid)
    counted = None
    if settings.masked_by:
        counted = _counted(settings, clip, flow, grid, spans, whole or Path(settings.video))
    elsewhere = None
    if settings.camera_from:
        other = read_source(settings, settings.camera_from)
        elsewhere = _camera(settings.camera_from, token_flow(other.frames, grid, spans), grid)
    return ChosenMotion(settings, grid, counted, camera, elsewhere, drawn)


def _drawn(settings: Settings, drawing: Drawing, grid: Grid, spans: Sequence[range]) -> Tensor:
    times = latent_times(settings.frames, spans)
    for line in remarks(drawing, grid, times):
        logger.warning("%s: %s", settings.motion, line)
    target = between_frames(drawn_target(drawing, grid, times))
    if target.isnan().all():
        raise SettingsError(
            f"motion: {settings.motion} asks nothing of the {grid.frames} latent frames of this video; draw "
            "something that stays in the frame, or use more --frames"
        )
    return target


def _camera(source: str, flow: np.ndarray, grid: Grid) -> Tensor:
    target = between_frames(camera_target(flow, grid))
    if target.isnan().all():
        raise SettingsError(
            f"{source}: its frames are too smooth, or change too much, to see how the camera moves"
        )
    return target


def _counted(
    settings: Settings,
    clip: Clip,
    flow: np.ndarray | None,
    grid: Grid,
    spans: Sequence[range],
    whole: Path | Clip,
) -> Tensor:
    if settings.masked_by != "auto":
        mask = read_mask(settings.mask, clip, settings, grid, whole=whole, invert=settings.mask_invert)
        return token_mask(mask, grid, spans)
    moving = moving_mask(flow, camera_flow(flow, grid), grid)
    logger.info("mask: %.0f %% of the frame moves against the camera", 100 * moving.float().mean())
    counted = ~moving if settings.mask_invert else moving
    if not counted.any():
        seen = "everything" if settings.mask_invert else "nothing"
        raise SettingsError(
            f"mask: {seen} is seen to move against the camera in {settings.video}; give --mask FILE"
        )
    return counted
