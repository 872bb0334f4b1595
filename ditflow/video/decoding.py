"""Decode chosen frames of a video file: by decord where it gives the same frames as PyAV, else by PyAV."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ditflow.errors import DitflowError
from ditflow.limits import SOURCE_FRAMES
from ditflow.video.display import Display, display_of
from ditflow.video.interlacing import Deinterlacer
from ditflow.video.timeline import Timeline, open_video, read_timeline

logger = logging.getLogger(__name__)
ToArray = Callable[[Image.Image], np.ndarray]


def read_video(
    source: Path, wanted: range, to_array: ToArray, fps: Fraction | None = None
) -> tuple[list[np.ndarray], int, Fraction | None]:
    """Return the wanted frames through `to_array`, the number of readable frames, and the frame rate.

    Frames count at the rate `fps`, or at the video's mean rate. Returns no frames if any of them cannot be
    read. Raises DitflowError if the file is not a video.
    """
    timeline = read_timeline(source, wanted[-1], fps)
    clip = timeline.resampling
    if clip.count <= wanted[-1]:
        return [], clip.count, clip.rate
    shown = [clip.shown_at(index) for index in wanted]
    needed = sorted(set(shown))
    display = _display(source)
    if display is None:
        return [], 0, clip.rate
    notes = [*display.notes]
    found = _by_decord(source, timeline, needed, to_array) if display.is_plain else None
    if found is None:
        found = _by_pyav(source, timeline, needed, to_array, display, notes)
    for index, frame in zip(wanted, shown, strict=True):
        if frame not in found:
            return [], index, clip.rate
    if len({frame.shape for frame in found.values()}) > 1:
        raise DitflowError(f"{source} has frames of different sizes: give a size")
    if clip.note:
        logger.warning("%s has a %s", source, clip.note)
    if notes:
        logger.warning("%s is read as players show it: %s", source, ", ".join(notes))
    return [found[frame] for frame in shown], clip.count, clip.rate


def video_shape(source: Path, fps: Fraction | None = None) -> tuple[int, int, int] | None:
    """The number of frames, counted as `read_video` does, and the width and height at which they are shown.

    None if no frame can be decoded. Raises DitflowError if the file is not a video.
    """
    count = read_timeline(source, SOURCE_FRAMES - 1, fps).resampling.count
    display, frame = _display(source), next(decoded_frames(source), None)
    return (count, *display.picture(frame).size) if display and frame else None


def decoded_frames(source: Path, key: int | None = None, threads: str = "SLICE") -> Iterator[av.VideoFrame]:
    """Yield frames in display order, from the key frame stamped `key` or from the first frame."""
    with open_video(source) as (container, stream), suppress(av.FFmpegError):
        stream.thread_type = threads
        if key is not None:
            container.seek(key, stream=stream)
        yield from _decoded(container, stream)


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        with suppress(av.FFmpegError):  # skip a damaged packet: the next ones may be intact
            yield from packet.decode()


def _display(source: Path) -> Display | None:
    """How the video's frames are shown, or None if none of them can be decoded."""
    with open_video(source) as (container, stream), suppress(av.FFmpegError):
        for frame in _decoded(container, stream):
            return display_of(source, stream, frame)
    return None


def _by_pyav(
    source: Path,
    timeline: Timeline,
    needed: list[int],
    to_array: ToArray,
    display: Display,
    notes: list[str],  # what was changed for display is added
) -> dict[int, np.ndarray]:
    """The frames needed that can be read, by index."""
    index_at = None if timeline.stamps is None else {stamp: i for i, stamp in enumerate(timeline.stamps)}
    found: dict[int, np.ndarray] = {}
    # the key frame may be marked wrongly, and frame threads lose intact frames around a damaged packet
    for key, threads in ((timeline.key_before(needed[0]), "AUTO"), (None, "SLICE")):
        if len(found) == len(needed):
            break
        deinterlacer = Deinterlacer(display.field_order)
        for order, frame in enumerate(deinterlacer.frames(decoded_frames(source, key, threads))):
            index = order if index_at is None else index_at.get(frame.pts, -1)
            if index in needed:
                found[index] = to_array(display.picture(frame))
            if index >= needed[-1]:
                break
    if deinterlacer.has_changed:
        notes.append("deinterlaced")
    return found


def _by_decord(
    source: Path, timeline: Timeline, needed: list[int], to_array: ToArray
) -> dict[int, np.ndarray] | None:
    """The frames needed of a plain video, or None if decord is missing, fails, or would give other frames."""
    try:
        import decord  # no wheel on some platforms
    except (ImportError, OSError, RuntimeError):  # RuntimeError: its own library is missing
        return None
    # decord seeks to wrong frames in open groups of pictures and with intra refresh: only read from the start
    if not timeline.whole or timeline.key_before(needed[0]) is not None:
        return None
    try:
        decord.logging.set_level(decord.logging.QUIET)  # PyAV takes over, and reports errors
        # by default it silently repeats the last good frame in place of frames it cannot decode
        reader = decord.VideoReader(str(source), ctx=decord.cpu(0), fault_tol=1e-4)
        found = {}
        for index in range(needed[-1] + 1):
            picture = reader.next()
            if index in needed:
                found[index] = to_array(Image.fromarray(picture.asnumpy()))
        return found
    except Exception:  # decord raises many types
        return None
