"""Which frames a video file has and when each is shown, from its packets alone."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import NamedTuple

import av

from ditflow.errors import DitflowError
from ditflow.files import regular_file
from ditflow.limits import PICTURE_PIXELS, SOURCE_FRAMES
from ditflow.video.resampling import Resampling, resampled

VP8_SHOWN = 0x10  # bit of a frame's first byte
MOST_PIXELS = {"max_pixels": str(PICTURE_PIXELS)}
# only formats that hold their own frames: a playlist could open other files and addresses
SELF_CONTAINED = {"format_whitelist": "mov,mp4,matroska,webm,avi,gif", "protocol_whitelist": "file"}
LATEST = 16  # packets from a frame's own packet to the one after which it is shown, at most
REORDERED = 2 * LATEST  # packets read after the last wanted frame
# PyAV before 19 refuses metadata that is not UTF-8, unless told not to; later versions read it as surrogates
METADATA = {"metadata_errors": "surrogateescape"} if int(av.__version__.split(".")[0]) < 19 else {}


class Packet(NamedTuple):
    stamp: int | None  # when its frame is shown, in the stream's time base
    decoded: int | None  # when it is decoded
    duration: int
    is_key: bool
    is_shown: bool


@dataclass(frozen=True)
class Timeline:
    resampling: Resampling  # frames are counted up to a little after the last wanted one
    stamps: list[int] | None  # when each frame is shown, in the stream's time base; None if unknown
    keys: list[int]  # stamps of the frames at which decoding can start, ascending
    whole: bool  # every packet read has a frame that is shown

    def key_before(self, index: int) -> int | None:
        """The stamp to seek for frame `index`, or None to decode from the beginning."""
        if self.stamps is None:
            return None
        keys = bisect_right(self.keys, self.stamps[index])
        return self.keys[keys - 1] if keys > 1 else None


@contextmanager
def open_video(source: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and its main video stream. Raises DitflowError if there is no video to read."""
    try:
        options = SELF_CONTAINED | MOST_PIXELS
        container = av.open(str(regular_file(source)), options=options, **METADATA)
    except (av.FFmpegError, OSError) as error:
        raise DitflowError(
            f"{source} cannot be read as a video ({error.strerror}): give mp4, mov, mkv, webm, avi, gif"
            " or a folder of images"
        ) from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise DitflowError(f"{source} has no video stream, only {_kinds(container)}: give a video")
        if stream.codec_context is None:
            raise DitflowError(f"{source} uses a codec that cannot be decoded here: convert it to H.264")
        stream.codec_context.options = MOST_PIXELS  # frames may be larger than the first one
        yield container, stream


def read_timeline(source: Path, last: int, fps: Fraction | None = None) -> Timeline:
    """Find the frames up to a little after frame `last` of the clip at `fps`, or at the video's mean rate.

    Frames are counted and their rate is measured, because the header may be wrong. If the rate varies, all
    packets are read for its mean.
    """
    with open_video(source) as (container, stream):
        declared = _declared_rate(stream)
        if container.format.name == "gif":
            declared = None  # what FFmpeg says is a guess
        packets = _packets(container, stream)
        enough = SOURCE_FRAMES
        if declared:
            enough = min(ceil((last + 1) * declared / fps), SOURCE_FRAMES) if fps else last
        read = list(_part(packets, enough + REORDERED))
        is_cut = sum(packet.is_shown for packet in read) > enough + REORDERED
        ordered, shown = _in_order(container, read)
        resampling = _resampling(container, stream, shown, declared, fps, is_cut)
        if is_cut and (resampling.count <= last or resampling.note and not fps):
            read += _part(packets, SOURCE_FRAMES)
            ordered, shown = _in_order(container, read)
            resampling = _resampling(container, stream, shown, declared, fps, is_cut=False)
        return Timeline(
            resampling=resampling,
            stamps=sorted(packet.stamp for packet in shown) if ordered else None,
            keys=sorted(packet.stamp for packet in read if packet.is_key) if ordered else [],
            whole=ordered and len(shown) == len(read),
        )


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Packet]:
    hides = stream.codec_context.name == "vp8"
    with suppress(av.FFmpegError):  # a truncated file ends here
        for packet in container.demux(stream):
            if not packet.size or packet.is_corrupt:
                continue
            # an edit list hides frames, and VP8 has reference frames that are never shown
            is_shown = not (packet.is_discard or hides and not bytes(packet)[0] & VP8_SHOWN)
            yield Packet(packet.pts, packet.dts, max(packet.duration or 0, 0), packet.is_keyframe, is_shown)


def _part(packets: Iterator[Packet], frames: int) -> Iterator[Packet]:
    """The next packets, until they hold more than so many frames."""
    shown = 0
    for packet in packets:
        yield packet
        shown += packet.is_shown
        if shown > frames:
            return


def _in_order(container: av.container.InputContainer, packets: list[Packet]) -> tuple[bool, list[Packet]]:
    """Whether stamps tell the packets apart, and the packets of frames that are shown."""
    stamps = {packet.stamp for packet in packets} - {None}
    ordered = len(stamps) == len(packets) and container.format.name not in ("avi", "gif")
    shown = [packet for packet in packets if packet.is_shown]
    keys = [packet.stamp for packet in packets if packet.is_key]
    if ordered and keys:  # frames before the first key frame depend on frames that were cut off
        shown = [packet for packet in shown if packet.stamp >= min(keys)]
    return ordered, shown


def _resampling(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    shown: list[Packet],
    declared: Fraction | None,
    fps: Fraction | None,
    is_cut: bool,  # more packets follow
) -> Resampling:
    if container.format.name == "avi":  # it stores when frames are decoded, which are the same times in order
        shown = [packet._replace(stamp=packet.decoded) for packet in shown]
    if all(packet.stamp is not None for packet in shown):
        shown = sorted(shown, key=lambda packet: packet.stamp)
        if is_cut:  # among the last ones, some are missing
            shown = shown[:-LATEST]
        times = [packet.stamp * stream.time_base for packet in shown]
    else:
        times = [index / declared for index in range(len(shown))] if declared else []
    if not times or times[0] == times[-1]:
        return Resampling(fps or declared, len(shown), range(len(shown)))
    return resampled(times, shown[-1].duration * stream.time_base, declared, fps)


def _declared_rate(stream: av.VideoStream) -> Fraction | None:
    rate = stream.average_rate or stream.guessed_rate
    return Fraction(rate.numerator, rate.denominator) if rate else None  # PyAV 19 has a type of its own


def _kinds(container: av.container.InputContainer) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
