"""A stretch of a video or of an image folder, as a clip of the size that is asked for."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from ditflow.errors import DitflowError, SettingsError
from ditflow.video.clip import Clip
from ditflow.video.deadline import in_time
from ditflow.video.decoding import Place, read_video
from ditflow.video.fitting import FITS, fitted
from ditflow.video.folders import image_paths, read_images
from ditflow.video.timeline import DEFAULT_RATE


def read_clip(
    source: str | Path,
    *,
    frames: int,
    start: int = 0,  # index of the first frame, in the source's frames
    stride: int = 1,  # source frames from one to the next
    size: tuple[int, int] | None,  # (width, height) in pixels; None keeps the source's
    fit: str = "crop",  # "crop" fills the size and cuts, "pad" adds black bars, "stretch" distorts
) -> Clip:
    """Source frames start, start + stride, ...: upright RGB, transparent parts on black.

    The clip's frame rate is the source's (an image folder's: 8) over the stride, so motion keeps its speed.
    Raises DitflowError if the source cannot be read or is too short, SettingsError for values out of range.
    """
    source = Path(source)
    if frames < 1 or stride < 1 or start < 0:
        raise SettingsError(
            f"frames {frames}, start {start}, stride {stride}: give frames and stride from 1, start from 0"
        )
    if fit not in FITS:
        raise SettingsError(f"fit {fit!r}: give one of {', '.join(FITS)}")
    if not source.exists():
        raise DitflowError(f"{source} does not exist: give a video file or a folder of images")
    wanted = range(start, start + frames * stride, stride)
    read = _read_folder if source.is_dir() else read_video
    place = partial(fitted, size=size, fit=fit)
    pictures, available, frame_rate = in_time(partial(read, source, wanted, place), source)
    if not pictures:
        raise DitflowError(f"{source}: {_too_short(available, wanted)}")
    return Clip(np.stack(pictures), frame_rate / stride)


def _read_folder(source: Path, wanted: range, place: Place) -> tuple[list[np.ndarray], int, Fraction]:
    paths = image_paths(source)
    if len(paths) <= wanted[-1]:
        return [], len(paths), DEFAULT_RATE
    return read_images([paths[index] for index in wanted], place), len(paths), DEFAULT_RATE


def _too_short(available: int, wanted: range) -> str:
    """What to change, where no more than the first `available` frames can be read."""
    if available == 0:
        return "no frame of it can be read: give another video"
    start, stride, frames = wanted.start, wanted.step, len(wanted)
    room = available - 1 - start  # frames after the first one
    remedies = []
    if room >= 0:
        remedies.append(f"--frames {room // stride + 1}")
    if frames > 1 and room >= frames - 1:
        remedies.append(f"--stride {room // (frames - 1)}")
    if (latest := available - 1 - (wanted[-1] - start)) >= 0:
        remedies.append(f"--start {latest}")
    if not remedies:
        remedies.append(f"--start 0 --frames {(available - 1) // stride + 1}")
    return (
        f"only {available} frames can be read, and {frames} frames from frame {start} with stride {stride}"
        f" need {wanted[-1] + 1}: what fits is {' or '.join(remedies)}"
    )
