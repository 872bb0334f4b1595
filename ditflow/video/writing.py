"""Write clips to files. A file appears under its name only when it is complete."""

import re
from collections.abc import Iterable
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ditflow.errors import DitflowError, SettingsError, TemporaryError
from ditflow.files import whole_or_absent
from ditflow.video.clip import Clip
from ditflow.video.timeline import open_video

# for the same bits each time: the output depends on the number of threads, and macroblock-tree rate control
# reads uninitialised memory
X264 = {"crf": "14", "x264-params": "threads=1:mbtree=0"}
GIF_TICKS = 100  # a second
SHORTEST_GIF_FRAME = 2  # ticks; browsers show shorter frames for 10


def write_clip(clip: Clip, path: Path, *, metadata: str | None = None, replace_frames: bool = False) -> None:
    """Write an MP4, a GIF or, without a suffix, a folder of PNG frames. Only MP4 stores the metadata.

    With `replace_frames`, a folder of frames replaces one that this function wrote before. Any other folder
    with content is refused.

    Raises SettingsError for another suffix, DitflowError if the file cannot be written, ValueError if an MP4
    would have an odd width or height.
    """
    path = Path(path)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise SettingsError(
            f"{path}: clips are written as .mp4, .gif or a folder of frames (no suffix), not {path.suffix}"
        )
    replaceable = path.is_dir() and not path.suffix and (replace_frames and _is_frames(path))
    if path.is_dir() and not replaceable and (path.suffix or any(path.iterdir())):
        raise DitflowError(f"{path} is an existing folder: move it away or give another name")
    try:
        with whole_or_absent(path, replace_folder=replace_frames) as unfinished:
            write(clip, unfinished, metadata)
    except OSError as error:
        reason = error.strerror or error
        raise TemporaryError(
            f"{path} cannot be written ({reason}): free some space or give another path"
        ) from error


def read_metadata(path: Path) -> str | None:
    """The metadata that `write_clip` stored. Raises DitflowError if the file is not a video."""
    with open_video(path) as (container, _):
        comment = container.metadata.get("comment")
    # bytes that are not UTF-8 were read as surrogates, which cannot be printed
    return comment and comment.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def without_metadata(path: Path) -> bytes:
    """An MP4 with the frames of another as they are, and nothing else of it.

    Raises DitflowError if the file is not a video that can be copied.
    """
    copy = BytesIO()
    try:
        with open_video(path) as (container, stream), av.open(copy, "w", format="mp4") as written:
            copied = written.add_stream_from_template(stream)
            copied.metadata.clear()
            for packet in container.demux(stream):
                if packet.size:
                    packet.stream = copied
                    written.mux(packet)
    except av.FFmpegError as error:
        raise DitflowError(f"{path} cannot be copied ({error.strerror}): make the run again") from error
    return copy.getvalue()


def _write_mp4(clip: Clip, path: Path, metadata: str | None) -> None:
    height, width = clip.frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height} is odd; MP4 needs an even width and height")
    rate = clip.frame_rate.limit_denominator(1 << 16)  # the file stores it in 32 bits
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        if metadata is not None:
            container.metadata["comment"] = metadata
        stream = container.add_stream("libx264", rate=rate, options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        pictures = (
            av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            for frame in clip.frames
        )
        _encode(container, stream, pictures, range(len(clip.frames)), 1 / rate)


def _write_gif(clip: Clip, path: Path, metadata: str | None) -> None:
    step = max(GIF_TICKS / clip.frame_rate, SHORTEST_GIF_FRAME)
    stamps = [round(index * step) for index in range(len(clip.frames) + 1)]
    final_delay = {"final_delay": str(stamps[-1] - stamps[-2])}
    with av.open(str(path), "w", format="gif", options=final_delay) as container:
        stream = container.add_stream("gif", rate=GIF_TICKS)
        stream.height, stream.width = clip.frames.shape[1:3]
        stream.pix_fmt = "pal8"
        _encode(container, stream, map(_with_palette, clip.frames), stamps[:-1], Fraction(1, GIF_TICKS))


def _with_palette(frame: np.ndarray) -> av.VideoFrame:
    image = Image.fromarray(frame)
    image = image.quantize(palette=image.quantize(256, Image.Quantize.FASTOCTREE))  # dithered
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0] = 255  # alpha
    palette[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")


def _encode(
    container: av.container.OutputContainer,
    stream: av.VideoStream,
    pictures: Iterable[av.VideoFrame],
    stamps: Iterable[int],
    time_base: Fraction,
) -> None:
    stream.codec_context.time_base = time_base
    for picture, stamp in zip(pictures, stamps, strict=True):
        picture.pts, picture.time_base = stamp, time_base
        container.mux(stream.encode(picture))
    container.mux(stream.encode())


def _write_folder(clip: Clip, path: Path, metadata: str | None) -> None:
    path.mkdir()
    for index, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(path / f"{index:05d}.png")


def _is_frames(path: Path) -> bool:
    """Whether a folder holds only files with the names that `_write_folder` gives."""
    return all(re.fullmatch(r"\d{5,}\.png", entry.name) for entry in path.iterdir())


WRITERS = {".mp4": _write_mp4, ".gif": _write_gif, "": _write_folder}
