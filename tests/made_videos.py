"""Synthetic videos in many formats whose frames show their index, and helpers for generated clips."""

import itertools
from pathlib import Path

import av
import numpy as np

from ditflow.small.clips import made_clip
from ditflow.video import Clip

COUNT, HEIGHT, WIDTH = 40, 48, 64
H264 = {"crf": "10", "g": "8", "bf": "2", "sc_threshold": "0"}
OPEN_GROUPS = {"x264-params": "keyint=8:min-keyint=8:open-gop=1:bframes=3:scenecut=0"}
LEADING = {"x265-params": "log-level=none:keyint=8:min-keyint=8:open-gop=0:radl=2:scenecut=0:b-adapt=0"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}
VP9 = {"g": "8", "b": "1M", "lag-in-frames": "8", "auto-alt-ref": "1"}

KINDS = {  # file: codec, pixel format, codec options
    "plain.mp4": ("libx264", "yuv420p", H264),
    "plain.mov": ("libx264", "yuv420p", H264),
    "plain.mkv": ("libx264", "yuv420p", H264),
    "full_range.mp4": ("libx264", "yuvj420p", H264),
    "open_groups.mkv": ("libx264", "yuv420p", OPEN_GROUPS),
    "leading.mkv": ("libx265", "yuv420p", LEADING),
    "intra_refresh.mkv": ("libx264", "yuv420p", INTRA_REFRESH),
    "vp9.webm": ("libvpx-vp9", "yuv420p", VP9),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "8", "b": "1M"}),
    "unstamped.avi": ("libx264", "yuv420p", H264),
    "reordered.avi": ("mpeg4", "yuv420p", {"g": "8", "bf": "2", "b": "2M"}),
    "ten_bit.mp4": ("libx264", "yuv420p10le", H264),
    "grey.mkv": ("ffv1", "gray", {}),
    "alpha.mov": ("qtrle", "argb", {}),
}


def made_frame(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame whose grey level shows its index, with a red upper left quarter and a moving green bar."""
    frame = np.full((height, width, 3), 8 + 6 * index, np.uint8)
    frame[: height // 2, : width // 2] = (200, 30, 30)
    frame[-height // 4 :, index % (width - 4) : index % (width - 4) + 4] = (30, 200, 30)
    return frame


def indices(clip: Clip) -> list[int]:
    """The index that each frame shows."""
    return [round((float(frame[4, -4].mean()) - 8) / 6) for frame in clip.frames]


def made_video(
    path: Path, codec="libx264", pixels="yuv420p", options=H264, *, height=HEIGHT, width=WIDTH, rate=10
):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for index in range(COUNT):
            picture = av.VideoFrame.from_ndarray(made_frame(index, height, width), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def remuxed(source: Path, target: Path, change=lambda number, packet: packet, **options: str) -> Path:
    """Copy a video's packets to a new file; `change` may replace a packet, or drop it by returning None."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        for number, packet in enumerate(packets):
            if packet := change(number, packet):
                packet.stream = copy
                new.mux(packet)
    return target


def first_seed(**wanted):
    """The lowest seed whose generated clip has a plain backdrop and the wanted properties."""
    for seed in itertools.count():
        scene = made_clip(seed, frames=2).scene
        if scene.backdrop == "plain" and all(getattr(scene, name) == it for name, it in wanted.items()):
            return seed


def measured_centroids(weights):
    """Centre of mass (x, y) of each frame: weights [frames, height, width] -> [frames, 2]."""
    height, width = weights.shape[1:]
    masses = weights.sum(axis=(1, 2))
    x, y = weights.sum(axis=1) @ np.arange(width), weights.sum(axis=2) @ np.arange(height)
    return np.stack([x / masses, y / masses], axis=1)
