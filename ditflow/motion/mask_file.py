"""Reads which pixels of the clip count from a mask: a video, a folder of images or one image.

White counts: grey levels above half of 255. Transparent parts and the padding of `--fit pad` do not count.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from ditflow.errors import DitflowError, SettingsError
from ditflow.files import check_source
from ditflow.models.protocols import Grid
from ditflow.optical_flow.dense import grid_of, resized
from ditflow.optical_flow.following import follow
from ditflow.settings import Settings
from ditflow.video import Clip, read_clip
from ditflow.video.fitting import fitted
from ditflow.video.folders import SUFFIXES, image_size, read_images
from ditflow.video.reading import Shape, source_shape

logger = logging.getLogger(__name__)

HALF = 255 / 2  # grey level
ACCEPTED = "a mask is a video, a folder of images or one image"


def read_mask(
    path: str,
    clip: Clip,  # as `read_clip` reads it with the settings
    settings: Settings,
    grid: Grid,
    *,
    whole: Path | Clip,  # the source that this clip was read from
    invert: bool = False,  # black counts instead
) -> np.ndarray:  # [frames, height, width] bool, of the clip's shape
    """Which pixels of each frame of the clip the mask covers.

    A video or a folder has a mask for each frame of the source clip, and is read as the clip is. If it is
    shorter, its last frame is repeated. One image is the mask of the clip's first frame, and what is white in
    it is followed through the clip; inverted, all else counts in each frame. Another length or size than the
    source clip's, a part that is lost and a mask that covers everything are said in the log.

    Raises SettingsError if the file cannot be read or nothing counts, DitflowError if the clip's source
    cannot be read, or if one image is given and OpenCV is not installed.
    """
    source, clip_shape = Path(path), source_shape(whole, settings.clip_rate)
    is_image = source.suffix.lower() in SUFFIXES and not source.is_dir()
    try:
        check_source(source)
        if is_image:
            shape = Shape(clip_shape.frames, *image_size(source))
            white = _white_image(source, clip, settings)
        else:
            shape = source_shape(source, settings.clip_rate)
            white = _white(source, shape, clip, settings)
    except DitflowError as error:
        raise SettingsError(f"mask {error}; {ACCEPTED}") from None
    _tell_differences(source, shape, clip_shape, settings)
    inside = _without_padding(shape, clip, settings) & _without_padding(clip_shape, clip, settings)
    if is_image:
        is_plain = white[inside].all() or not white.any()  # then there is nothing to follow
        white = np.stack([white] * len(clip.frames)) if is_plain else _followed(source, white, clip, grid)
    mask = (white != invert) & inside
    if not mask.any():
        raise SettingsError(f"mask {source}: nothing counts; {_remedy(invert)}")
    if (mask == inside).all():
        logger.warning("mask %s covers everything, so it changes nothing: leave out --mask", source)
    return mask


def _remedy(invert: bool) -> str:
    if invert:
        return "it is inverted, so paint black (below half of 255 in grey) what should count"
    return "paint white (above half of 255 in grey) what should count"


def _white(
    source: Path, shape: Shape, clip: Clip, settings: Settings
) -> np.ndarray:  # [frames, height, width] bool
    """Where a video or a folder is white, in the clip's frames."""
    frames, height, width = clip.frames.shape[:3]
    start, stride = settings.start, settings.stride
    used = range(start, min(start + frames * stride, shape.frames), stride)
    if not used:
        raise SettingsError(
            f"{source} has {shape.frames} frames, but the clip is used from frame {start} on: give "
            "one that is as long as the clip"
        )
    read = read_clip(
        source,
        frames=len(used),
        start=start,
        stride=stride,
        fps=settings.clip_rate,
        size=(width, height),
        fit=settings.fit,
    )
    white = np.stack([_is_white(frame) for frame in read.frames])
    return np.pad(white, ((0, frames - len(used)), (0, 0), (0, 0)), mode="edge")


def _white_image(source: Path, clip: Clip, settings: Settings) -> np.ndarray:  # [height, width] bool
    """Where an image is white, in the clip's first frame."""
    height, width = clip.frames.shape[1:3]
    (picture,) = read_images([source], lambda image: fitted(image, (width, height), settings.fit))
    return _is_white(picture)


def _is_white(
    picture: np.ndarray,  # [height, width, 3] uint8
) -> np.ndarray:  # [height, width] bool
    return np.asarray(Image.fromarray(picture).convert("L")) > HALF


def _followed(
    source: Path,
    white: np.ndarray,  # [height, width] bool
    clip: Clip,
    grid: Grid,
) -> np.ndarray:  # [frames, height, width] bool
    """The white part of the first frame in all frames. Says so if it is lost before the last one."""
    size = white.shape
    rows, columns = map(max, grid_of(*size), (grid.height, grid.width))
    later = follow(white, clip.frames, rows, columns)[1:]
    parts = np.stack([white, *(resized(part.astype(np.float32), *size) > 0.5 for part in later)])
    lost = len(parts) - int(parts.any(axis=(1, 2))[::-1].argmax())  # after the last one that has it
    if lost < len(parts):
        logger.warning(
            "mask %s: what is white is not found from frame %d of %d on (counted from 0); if it is still in "
            "the clip, give a video of masks",
            *(source, lost, len(parts)),
        )
    return parts


def _tell_differences(source: Path, mask: Shape, clip: Shape, settings: Settings) -> None:
    """Say, in one line each, that the mask's length or size is not the clip's."""
    if mask.frames != clip.frames:
        logger.warning(
            "mask %s has %d frames and the clip %d%s: %s",
            *(source, mask.frames, clip.frames),
            f", at {float(settings.clip_rate):g} frames a second" if settings.clip_rate else "",
            "the rest is left out"
            if mask.frames > clip.frames
            else "where the mask ends, its last frame is repeated",
        )
    if mask[1:] != clip[1:]:
        logger.warning(
            "mask %s is %dx%d and the clip %dx%d: the mask is fitted as the clip is, by --fit %s",
            *(source, *mask[1:], *clip[1:], settings.fit),
        )


def _without_padding(shape: Shape, clip: Clip, settings: Settings) -> np.ndarray:  # [height, width] bool
    """Where the pictures of a source of this size are in the clip's frames."""
    height, width = clip.frames.shape[1:3]
    return _is_white(fitted(Image.new("L", (shape.width, shape.height), 255), (width, height), settings.fit))
