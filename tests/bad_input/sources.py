"""Damaged, strange or hostile videos and image folders, made by code."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from made_videos import made_frame, made_video, remuxed
from PIL import Image

HUGE = 30_000  # pixels


def of_kind(codec: str = "libx264", pixels: str = "yuv420p", width: int = 64, height: int = 48):
    return lambda path: made_video(path, codec, pixels, {}, width=width, height=height)


def front(path: Path) -> Path:
    """An MP4 whose index comes before its frames."""
    made_video(path.with_name("plain.mp4"))
    remuxed(path.with_name("plain.mp4"), path, movflags="faststart")
    path.with_name("plain.mp4").unlink()
    return path


def mp4_renamed(path: Path) -> None:
    front(path.with_name("b.mp4")).rename(path)


def cut(share: float, make: Callable[[Path], Path]):
    def write(path: Path) -> None:
        content = make(path).read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def content(given: bytes):
    return lambda path: path.write_bytes(given)


def packets(path: Path) -> list[tuple[int, int]]:
    """Position and size in bytes of each frame in the file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def few_frames(path: Path) -> None:
    """An unfinished download: the index is there, and five frames."""
    whole = front(path).read_bytes()
    path.write_bytes(whole[: packets(path)[5][0]])


def garbled(path: Path) -> None:
    """A video with an intact header and index whose frames are all noise."""
    whole = bytearray(front(path).read_bytes())
    noise = np.random.default_rng(0)
    for position, size in packets(path):
        whole[position : position + size] = noise.bytes(size)
    path.write_bytes(whole)


def picture(path: Path) -> None:
    Image.fromarray(made_frame(0)).save(path, "PNG")


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.int16), format="s16", layout="mono")
        silence.rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())


def frames_of(count: int):
    """A video of the first few frames."""

    def write(path: Path) -> None:
        source = made_video(path.with_name("whole.mkv"), "ffv1", "yuv420p", {})
        remuxed(source, path, lambda number, packet: packet if number < count else None)
        source.unlink()

    return write


def huge_in_matroska(path: Path) -> None:
    """A small video whose header claims HUGE x HUGE."""
    made_video(path, "ffv1", "yuv420p", {}, width=320, height=256)
    width, height = b"\xb0\x82" + struct.pack(">H", 320), b"\xba\x82" + struct.pack(">H", 256)
    whole = path.read_bytes()
    assert whole.count(width) == whole.count(height) == 1
    side = struct.pack(">H", HUGE)
    path.write_bytes(whole.replace(width, width[:2] + side).replace(height, height[:2] + side))


def huge_in_mp4(path: Path) -> None:
    """A small video whose container claims HUGE x HUGE; the codec's own header is right."""
    whole = bytearray(made_video(path).read_bytes())
    place = whole.index(b"avc1", whole.index(b"stsd")) + 28
    assert struct.unpack(">HH", whole[place : place + 4]) == (64, 48)
    whole[place : place + 4] = struct.pack(">HH", HUGE, HUGE)
    path.write_bytes(whole)


def gif(side: int):
    """Frames of one pixel on a square canvas."""

    def write(path: Path) -> None:
        header = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
        frame = b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
        path.write_bytes(header + 12 * frame + b"\x3b")

    return write


def ten_million_frames(path: Path) -> None:
    """A video of 40 frames whose index claims ten million."""
    whole = bytearray(made_video(path).read_bytes())
    sizes, times = whole.index(b"stsz"), whole.index(b"stts")
    whole[sizes + 8 : sizes + 16] = struct.pack(">II", 1, 10_000_000)
    whole[times + 8 : times + 20] = struct.pack(">III", 1, 10_000_000, 512)
    path.write_bytes(whole)


def two_billion_times(path: Path) -> None:
    """A video of 40 frames whose table of times claims two billion."""
    whole = bytearray(made_video(path, options={"bf": "0"}).read_bytes())
    times = whole.index(b"stts")
    whole[times + 12 : times + 16] = struct.pack(">I", 2_000_000_000)
    path.write_bytes(whole)


def uneven(path: Path) -> None:
    """A variable frame rate: each frame is shown longer than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(12):
            shown = av.VideoFrame.from_ndarray(made_frame(index), format="rgb24")
            shown.pts = index * (index + 1) // 2
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def turned(path: Path) -> None:
    """A phone's upright video: stored in landscape, with a flag to rotate it by 90 degrees clockwise."""
    whole = bytearray(made_video(path).read_bytes())
    matrix = whole.index(b"tkhd") + 44
    whole[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(whole)


def folder(change: Callable[[Path], object] = lambda path: None):
    """A folder of twelve images, then changed by `change`."""

    def write(path: Path) -> None:
        path.mkdir()
        for index in range(12):
            Image.fromarray(made_frame(index)).save(path / f"frame{index:02}.png")
        change(path)

    return write


def half(path: Path) -> None:
    cut(0.5, lambda whole: whole)(path / "frame03.png")


def gap(path: Path) -> None:
    (path / "frame04.png").unlink()


def dim(path: Path) -> None:
    """Hardly any contrast."""
    for index, image in enumerate(sorted(path.iterdir())):
        Image.fromarray(made_frame(index) // 20).save(image)


def floats(path: Path) -> None:
    """Floats of 0 to 1 in place of bytes."""
    for index, image in enumerate(sorted(path.iterdir())):
        Image.fromarray(made_frame(index)[..., 0].astype(np.float32) / 255).save(image.with_suffix(".tif"))
        image.unlink()


def second_size(path: Path) -> None:
    Image.fromarray(made_frame(5, 30, 90)).save(path / "frame05.png")


def png(side: int):
    """A picture whose header claims a square of that side, with hardly any pixel data."""

    def change(path: Path) -> None:
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(9)), b"IEND")
        packed = [
            struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
            for chunk in chunks
        ]
        (path / "frame03.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))

    return change


def postscript(path: Path) -> None:
    """PostScript, which Pillow would pass to Ghostscript."""
    (path / "frame03.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n%%EOF\n"
    )


def pipe(path: Path) -> None:
    os.mkfifo(path)


def pipe_inside(path: Path) -> None:
    (path / "frame03.png").unlink()
    os.mkfifo(path / "frame03.png")


def link_to(target: str):
    """A link in place of an image."""

    def change(path: Path) -> None:
        (path / "frame03.png").unlink()
        (path / "frame03.png").symlink_to(target)

    return change
