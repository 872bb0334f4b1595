"""Read frames of a video or an image folder as a clip of a given size."""

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ditflow.errors import DitflowError, SettingsError
from ditflow.files import check_source
from ditflow.limits import CLIP_BYTES, FASTEST, PICTURE_PIXELS, SLOWEST, SOURCE_FRAMES
from ditflow.video.clip import Clip
from ditflow.video.deadline import in_time
from ditflow.video.decoding import ToArray, read_video, video_shape
from ditflow.video.fitting import FITS, fitted
from ditflow.video.folders import image_paths, image_size, read_images, warn_of_gaps

IN_MEMORY = "(frames in memory)"  # stands for the path of a clip that has none
DEFAULT_RATE = 8  # frames a second, for a source that does not state its rate
NO_FRAMES = (
    f"none of its frames can be read: it is damaged, or has more than {PICTURE_PIXELS} pixels; "
    "give another video"
)


def read_clip(
    source: str | Path | Clip,
    *,
    frames: int,
    start: int = 0,  # index of the first frame, in the source's frames after resampling
    stride: int = 1,  # source frames from one to the next
    fps: Fraction | None = None,  # frames a second to resample to; None: the source's own mean
    size: tuple[int, int] | None,  # (width, height) in pixels; None keeps the source's
    fit: str = "crop",  # "crop" fills the size and cuts, "pad" adds black bars, "stretch" distorts
    default_rate: int | None = None,  # frames a second, for a source that does not state its rate
    least_frames: int = 1,  # that a run can have, for the advice in errors
) -> Clip:
    """Read source frames start, start + stride, ... as upright RGB, transparent parts on black.

    Frames of variable rate, and of a rate other than `fps`, are resampled by their time stamps first. Images
    in a folder have the rate `fps`. The clip's frame rate is the source's (or the default) over the stride,
    so motion keeps its speed. A source in memory is cut and fitted in the same way, but not resampled.
    Raises DitflowError if the source cannot be read or is too short, SettingsError for values out of range.
    """
    if isinstance(source, Clip):
        source, read = IN_MEMORY, partial(_read_memory, source)
    else:
        source, read = Path(source), None
    if frames < 1 or stride < 1 or start < 0:
        raise SettingsError(
            f"frames {frames}, start {start}, stride {stride}: give frames and stride from 1, start from 0"
        )
    if fit not in FITS:
        raise SettingsError(f"fit {fit!r}: give one of {', '.join(FITS)}")
    if read is None:
        check_source(source)
        read = partial(_read_folder if source.is_dir() else read_video, source)
    wanted = range(start, start + frames * stride, stride)
    if wanted[-1] >= SOURCE_FRAMES:
        raise SettingsError(
            f"frames {frames}, start {start}, stride {stride} reach frame {wanted[-1]}, but only the "
            f"first {SOURCE_FRAMES} frames of a source are read: cut the source"
        )

    def to_array(image: Image.Image) -> np.ndarray:
        width, height = size or image.size
        if 3 * width * height * frames > CLIP_BYTES:
            raise DitflowError(
                f"{source}: {frames} frames of {width}x{height} take more than {CLIP_BYTES >> 30} GiB, "
                "the limit of a clip: give fewer frames or a smaller size"
            )
        return fitted(image, size, fit)

    pictures, available, frame_rate = in_time(partial(read, wanted, to_array, fps), source)
    if not pictures:
        raise DitflowError(f"{source}: {_too_short(available, wanted, least_frames, fps)}")
    frame_rate = frame_rate or Fraction(default_rate or DEFAULT_RATE)
    return Clip(np.stack(pictures), min(max(frame_rate / stride, SLOWEST), FASTEST))


class Shape(NamedTuple):
    """How long and how large a source is."""

    frames: int
    width: int  # pixels, as shown
    height: int


def source_shape(source: Path | Clip, fps: Fraction | None = None) -> Shape:
    """The shape of a source; its frames are counted as `read_clip` does, all of them.

    Raises DitflowError if the source cannot be read.
    """
    if isinstance(source, Clip):
        frames, height, width, _ = source.frames.shape
        return Shape(frames, width, height)
    check_source(source)
    read = _folder_shape if source.is_dir() else partial(video_shape, fps=fps)
    found = in_time(partial(read, source), source)
    if not found:
        raise DitflowError(f"{source}: {NO_FRAMES}")
    return Shape(*found)


def _read_folder(
    source: Path, wanted: range, to_array: ToArray, fps: Fraction | None
) -> tuple[list[np.ndarray], int, Fraction | None]:
    paths = image_paths(source)
    if len(paths) <= wanted[-1]:
        return [], len(paths), fps
    used = [paths[index] for index in wanted]
    warn_of_gaps(used)
    return read_images(used, to_array), len(paths), fps


def _read_memory(
    source: Clip, wanted: range, to_array: ToArray, fps: Fraction | None
) -> tuple[list[np.ndarray], int, Fraction]:
    if fps and fps != source.frame_rate:
        raise SettingsError(
            f"fps {fps}: frames in memory have the rate {source.frame_rate} and keep it; leave out fps"
        )
    if len(source.frames) <= wanted[-1]:
        return [], len(source.frames), source.frame_rate
    pictures = [to_array(Image.fromarray(source.frames[index])) for index in wanted]
    return pictures, len(source.frames), source.frame_rate


def _folder_shape(source: Path) -> tuple[int, int, int]:
    paths = image_paths(source)
    return len(paths), *image_size(paths[0])


def _too_short(available: int, wanted: range, least: int, fps: Fraction | None) -> str:
    """What to change if only the first `available` frames can be read."""
    if available == 0:
        return NO_FRAMES
    at_fps = f" at {float(fps):g} frames a second" if fps else ""
    if available < least:
        remedy = "a longer video or a higher --fps" if fps else "a longer video"
        return f"only {available} frames can be read{at_fps}, and a run needs at least {least}: give {remedy}"
    start, stride, frames = wanted.start, wanted.step, len(wanted)
    remedies = " or ".join(_remedies(available, start, stride, frames, least))
    return (
        f"only {available} frames can be read{at_fps}, but {frames} frames from frame {start} with stride "
        f"{stride} need {wanted[-1] + 1}: use {remedies}"
    )


def _remedies(available: int, start: int, stride: int, frames: int, least: int) -> list[str]:
    """Options with which at least `least` of the available frames can be read."""
    after = available - 1 - start  # readable frames after the first wanted one
    remedies = []
    if after >= 0 and (fewer := after // stride + 1) >= least:
        remedies.append(f"--frames {fewer}")
    if frames > 1 and after >= frames - 1:
        remedies.append(f"--stride {after // (frames - 1)}")
    if (latest := available - 1 - (frames - 1) * stride) >= 0:
        remedies.append(f"--start {latest}")
    if not remedies and (fewer := (available - 1) // stride + 1) >= least:
        remedies.append(f"--start 0 --frames {fewer}")
    if not remedies:  # then at least two are needed
        remedies.append(f"--start 0 --stride {(available - 1) // (least - 1)} --frames {least}")
    return remedies
