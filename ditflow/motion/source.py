"""The clip of a run, and a preview that stands in for it."""

from __future__ import annotations

import logging
from fractions import Fraction

from ditflow.models.families import ModelFamily
from ditflow.motion.drawing import Drawing
from ditflow.motion.preview import preview
from ditflow.settings import Settings
from ditflow.video import Clip, read_clip
from ditflow.video.reading import DEFAULT_RATE

logger = logging.getLogger(__name__)


def source_clip(
    settings: Settings, drawing: Drawing | None, family: ModelFamily | None, given: Clip | None = None
) -> Clip:
    """The clip given, or else the one that the settings name; without one, a preview of the drawn motion.

    Raises like `read_clip`.
    """
    rate = family.frame_rate if family else DEFAULT_RATE
    if not settings.has_clip:
        return preview(drawing, settings.frames, settings.size, Fraction(rate))
    clip = read_source(settings, given or settings.video, rate, family.least_frames if family else 1)
    if clip.few_levels:
        logger.warning("%s: %s, so its motion is hardly seen", settings.video, clip.few_levels)
    return clip


def read_source(
    settings: Settings, source: str | Clip, default_rate: int = DEFAULT_RATE, least_frames: int = 1
) -> Clip:
    """The frames of a source that the settings choose, fitted to their size. Raises like `read_clip`."""
    return read_clip(
        source,
        frames=settings.frames,
        start=settings.start,
        stride=settings.stride,
        fps=settings.clip_rate,
        size=settings.size,
        fit=settings.fit,
        default_rate=default_rate,
        least_frames=least_frames,
    )
