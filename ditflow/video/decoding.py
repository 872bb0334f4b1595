"""The wanted frames of a video file, by decord where it gives the same as PyAV, and by PyAV elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ditflow.errors import DitflowError
from ditflow.video.timeline import Timeline, open_video, read_timeline

Place = Callable[[Image.Image], np.ndarray]

# the display matrix (a, b, c, d) shows the pixel (x, y) at (ax + cy, bx + dy), y down
NARROWEST = 64  # pixels of width that decord reads right
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def read_video(source: Path, wanted: range, place: Place) -> tuple[list[np.ndarray], int, Fraction]:
    """The wanted frames, each through `place`; how many can be read; the frame rate.

    No frames, where not all that are wanted can be read. Raises DitflowError for what is no video.
    """
    timeline = read_timeline(source, wanted[-1])
    if timeline.count <= wanted[-1]:
        return [], timeline.count, timeline.frame_rate
    frames = _by_decord(source, timeline, wanted, place)
    if frames is None:
        found = _by_pyav(source, timeline, wanted, place)
        for index in wanted:
            if index not in found:
                return [], index, timeline.frame_rate
        frames = [found[index] for index in wanted]
    if len({frame.shape for frame in frames}) > 1:
        raise DitflowError(f"{source} changes its size on the way: give a size")
    return frames, timeline.count, timeline.frame_rate


def decoded_frames(source: Path, key: int | None = None, threads: str = "SLICE") -> Iterator[av.VideoFrame]:
    """Frames in the order of showing, from the key frame stamped `key` or from the first one."""
    with open_video(source) as (container, stream), suppress(av.FFmpegError):
        stream.thread_type = threads
        if key is not None:
            container.seek(key, stream=stream)
        for packet in container.demux(stream):
            with suppress(av.FFmpegError):  # one damaged packet; what follows may be sound
                yield from packet.decode()


def _by_pyav(source: Path, timeline: Timeline, wanted: range, place: Place) -> dict[int, np.ndarray]:
    """The wanted frames that can be read, by their index."""
    key = timeline.key_before(wanted[0])
    found = _found(decoded_frames(source, key, threads="AUTO"), timeline, wanted, place)
    if len(found) < len(wanted):
        # a key frame may be none, and with threads across frames a damaged packet takes sound ones along
        found = _found(decoded_frames(source), timeline, wanted, place)
    return found


def _found(
    frames: Iterator[av.VideoFrame], timeline: Timeline, wanted: range, place: Place
) -> dict[int, np.ndarray]:
    index_at = None if timeline.stamps is None else {stamp: i for i, stamp in enumerate(timeline.stamps)}
    found = {}
    for order, frame in enumerate(frames):
        index = order if index_at is None else index_at.get(frame.pts, -1)
        if index in wanted:
            found[index] = place(_upright(frame))
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


def _by_decord(source: Path, timeline: Timeline, wanted: range, place: Place) -> list[np.ndarray] | None:
    """None where decord is not installed, fails, or would not give the frames that PyAV gives."""
    try:
        import decord  # no wheel on some platforms
    except (ImportError, OSError):
        return None
    # its seeking gives wrong frames in open groups of pictures and with intra refresh: read without any
    if not timeline.whole or timeline.key_before(wanted[0]) is not None or not _is_plain(source):
        return None
    try:
        decord.logging.set_level(decord.logging.QUIET)  # where it fails, PyAV reads on or says what is wrong
        # without a tolerance it puts the last good frame in the place of every one that cannot be decoded
        reader = decord.VideoReader(str(source), ctx=decord.cpu(0), fault_tol=1e-4)
        frames = []
        for index in range(wanted[-1] + 1):
            picture = reader.next()
            if index in wanted:
                frames.append(place(Image.fromarray(picture.asnumpy())))
        return frames
    except Exception:  # it raises many kinds
        return None


def _is_plain(source: Path) -> bool:
    """8-bit 4:2:0 of even size, shown as stored: all other pixels decord converts in its own way.

    So it does those of very narrow videos: 48 pixels wide, it reads another picture.
    """
    frame = next(decoded_frames(source), None)
    return (
        frame is not None
        and frame.format.name in ("yuv420p", "yuvj420p")
        and frame.width % 2 == frame.height % 2 == 0
        and frame.width >= NARROWEST
        and _display_matrix(frame) in (None, (1, 0, 0, 1))
    )
