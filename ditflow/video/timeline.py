"""Which frames a video file has and when each is shown, from its packets alone."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av

from ditflow.errors import DitflowError
from ditflow.limits import PICTURE_PIXELS

VP8_SHOWN = 0x10  # bit of a frame's first byte
RATE_TOLERANCE = 0.2  # relative, between the declared frame rate and the measured one
MOST_PIXELS = {"max_pixels": str(PICTURE_PIXELS)}
# only formats that hold their own frames: a playlist could open other files and addresses
SELF_CONTAINED = {"format_whitelist": "mov,mp4,matroska,webm,avi,gif", "protocol_whitelist": "file"}
# PyAV before 19 refuses metadata that is not UTF-8, unless told not to; later versions read it as surrogates
METADATA = {"metadata_errors": "surrogateescape"} if int(av.__version__.split(".")[0]) < 19 else {}
REORDERED = 32  # packets read after the last wanted frame: codecs show a frame at most 16 packets late


class Packet(NamedTuple):
    stamp: int | None  # when its frame is shown, in the stream's time base
    duration: int
    is_key: bool
    is_shown: bool


@dataclass(frozen=True)
class Timeline:
    count: int  # frames, counted up to REORDERED after the last wanted one
    frame_rate: Fraction | None  # frames a second; None: the file does not tell
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
        container = av.open(str(source), options=SELF_CONTAINED | MOST_PIXELS, **METADATA)
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


def read_timeline(source: Path, last: int) -> Timeline:
    """Find the frames up to a little after `last`, counting them because the header may be wrong."""
    with open_video(source) as (container, stream):
        packets = _packets(container, stream, last)
        stamps = {packet.stamp for packet in packets} - {None}
        ordered = len(stamps) == len(packets) and container.format.name not in ("avi", "gif")
        keys = sorted(packet.stamp for packet in packets if packet.is_key) if ordered else []
        # frames before the first key frame depend on frames that were cut off
        shown = [packet for packet in packets if packet.is_shown and (not keys or packet.stamp >= keys[0])]
        return Timeline(
            count=len(shown),
            frame_rate=_frame_rate(container, stream, shown),
            stamps=sorted(packet.stamp for packet in shown) if ordered else None,
            keys=keys,
            whole=ordered and len(shown) == len(packets),
        )


def _packets(container: av.container.InputContainer, stream: av.VideoStream, last: int) -> list[Packet]:
    hides = stream.codec_context.name == "vp8"
    packets, shown = [], 0
    with suppress(av.FFmpegError):  # a truncated file ends here
        for packet in container.demux(stream):
            if not packet.size or packet.is_corrupt:
                continue
            # an edit list hides frames, and VP8 has reference frames that are never shown
            is_shown = not (packet.is_discard or hides and not bytes(packet)[0] & VP8_SHOWN)
            packets.append(Packet(packet.pts, packet.duration or 0, packet.is_keyframe, is_shown))
            shown += is_shown
            if shown > last + REORDERED:
                break
    return packets


def _frame_rate(
    container: av.container.InputContainer, stream: av.VideoStream, shown: list[Packet]
) -> Fraction | None:
    if container.format.name == "gif" and (ticks := sum(packet.duration for packet in shown)):
        return len(shown) / (ticks * stream.time_base)
    declared = stream.average_rate or stream.guessed_rate
    if declared:  # PyAV 19 has a type of its own
        declared = Fraction(declared.numerator, declared.denominator)
    stamps = [packet.stamp for packet in shown if packet.stamp is not None]
    if len(stamps) < 2 or max(stamps) == min(stamps):
        return declared
    measured = (len(stamps) - 1) / ((max(stamps) - min(stamps)) * stream.time_base)
    # browsers record files that declare 1000 frames a second
    if declared and abs(declared / measured - 1) < RATE_TOLERANCE:
        return declared
    return measured.limit_denominator(1001) or measured


def _kinds(container: av.container.InputContainer) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
