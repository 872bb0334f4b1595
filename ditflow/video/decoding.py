"""Decode chosen frames of a video file: by decord where it gives the same frames as PyAV, else by PyAV."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ditflow.errors import DitflowError
from ditflow.video.timeline import Timeline, open_video, read_timeline

ToArray = Callable[[Image.Image], np.ndarray]

NARROWEST = 64  # pixels; decord reads narrower videos wrong
# the display matrix (a, b, c, d) shows the pixel (x, y) at (ax + cy, bx + dy), y down
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def read_video(source: Path, wanted: range, to_array: ToArray) -> tuple[list[np.ndarray], int, Fraction]:
    """Return the wanted frames through `to_array`, the number of readable frames, and the frame rate.

    Returns no frames if any of them cannot be read. Raises DitflowError if the file is not a video.
    """
    timeline = read_timeline(source, wanted[-1])
    if timeline.count <= wanted[-1]:
        return [], timeline.count, timeline.frame_rate
    frames = _by_decord(source, timeline, wanted, to_array)
    if frames is None:
        found = _by_pyav(source, timeline, wanted, to_array)
        for index in wanted:
            if index not in found:
                return [], index, timeline.frame_rate
        frames = [found[index] for index in wanted]
    if len({frame.shape for frame in frames}) > 1:
        raise DitflowError(f"{source} has frames of different sizes: give a size")
    return frames, timeline.count, timeline.frame_rate


def decoded_frames(source: Path, key: int | None = None, threads: str = "SLICE") -> Iterator[av.VideoFrame]:
    """Yield frames in display order, from the key frame stamped `key` or from the first frame."""
    with open_video(source) as (container, stream), suppress(av.FFmpegError):
        stream.thread_type = threads
        if key is not None:
            container.seek(key, stream=stream)
        for packet in container.demux(stream):
            with suppress(av.FFmpegError):  # skip a damaged packet: the next ones may be intact
                yield from packet.decode()


def _by_pyav(source: Path, timeline: Timeline, wanted: range, to_array: ToArray) -> dict[int, np.ndarray]:
    """The wanted frames that can be read, by index."""
    key = timeline.key_before(wanted[0])
    found = _pick(decoded_frames(source, key, threads="AUTO"), timeline, wanted, to_array)
    if len(found) < len(wanted):
        # the key frame may be marked wrongly, and frame threads lose intact frames around a damaged packet
        found = _pick(decoded_frames(source), timeline, wanted, to_array)
    return found


def _pick(
    frames: Iterator[av.VideoFrame], timeline: Timeline, wanted: range, to_array: ToArray
) -> dict[int, np.ndarray]:
    """The wanted ones of these frames, by index."""
    index_at = None if timeline.stamps is None else {stamp: i for i, stamp in enumerate(timeline.stamps)}
    found = {}
    for order, frame in enumerate(frames):
        index = order if index_at is None else index_at.get(frame.pts, -1)
        if index in wanted:
            found[index] = to_array(_upright(frame))
        if index >= wanted[-1]:
            break
    return found


def _upright(frame: av.VideoFrame) -> Image.Image:
    has_alpha = any(component.is_alpha for component in frame.format.components)
    image = Image.fromarray(frame.to_ndarray(format="rgba" if has_alpha else "rgb24"))
    turn = UPRIGHT.get(_display_matrix(frame))
    return image if turn is None else image.transpose(turn)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]  # 16.16 fixed point
    return tuple(round(value / 65536) for value in (a, b, c, d))


def _by_decord(source: Path, timeline: Timeline, wanted: range, to_array: ToArray) -> list[np.ndarray] | None:
    """The wanted frames, or None if decord is missing, fails, or would give other frames than PyAV."""
    try:
        import decord  # no wheel on some platforms
    except (ImportError, OSError, RuntimeError):  # RuntimeError: its own library is missing
        return None
    # decord seeks to wrong frames in open groups of pictures and with intra refresh: only read from the start
    if not timeline.whole or timeline.key_before(wanted[0]) is not None or not _is_plain(source):
        return None
    try:
        decord.logging.set_level(decord.logging.QUIET)  # PyAV takes over, and reports errors
        # by default it silently repeats the last good frame in place of frames it cannot decode
        reader = decord.VideoReader(str(source), ctx=decord.cpu(0), fault_tol=1e-4)
        frames = []
        for index in range(wanted[-1] + 1):
            picture = reader.next()
            if index in wanted:
                frames.append(to_array(Image.fromarray(picture.asnumpy())))
        return frames
    except Exception:  # decord raises many types
        return None


def _is_plain(source: Path) -> bool:
    """Whether decord gives the same pixels as PyAV: 8-bit 4:2:0 of even size, stored upright, not narrow.

    Other formats it converts differently; of a video 48 pixels wide it reads a wrong picture.
    """
    frame = next(decoded_frames(source), None)
    return (
        frame is not None
        and frame.format.name in ("yuv420p", "yuvj420p")
        and frame.width % 2 == frame.height % 2 == 0
        and frame.width >= NARROWEST
        and _display_matrix(frame) in (None, (1, 0, 0, 1))
    )
