"""Deinterlace the frames of interlaced video that show combs."""

from collections.abc import Iterator

import av
import numpy as np

# FFmpeg's field orders: 2 top first, 3 bottom first, 4 and 5 likewise by the order of display
INTERLACED = (2, 3, 4, 5)
BOTTOM_FIRST = (3, 4)
STEP = 10  # levels of 255 from a row to the next; a comb alternates by at least this much
COMBED = 1e-4  # share of pixels in combs, from which a frame is deinterlaced


class Deinterlacer:
    """Passes frames on, deinterlaced where the file says that they are interlaced and they show combs.

    Progressive video is often said to be interlaced; its frames stay as they are.
    """

    def __init__(self, field_order: int) -> None:  # one of FFmpeg's numbers
        self._parity = "bff" if field_order in BOTTOM_FIRST else "tff"
        self._is_interlaced = field_order in INTERLACED  # frames may be flagged too
        self.has_changed = False  # whether any frame was deinterlaced
        self._waiting: list[av.VideoFrame] = []  # pushed into the graph, and not yet out of it
        self._graph: av.filter.Graph | None = None

    def frames(self, decoded: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        kind = None
        for frame in decoded:
            if self._graph and kind != (frame.width, frame.height, frame.format.name):
                yield from self._end()
            if self._graph is None and (self._is_interlaced or frame.interlaced_frame):
                kind = (frame.width, frame.height, frame.format.name)
                self._graph = _bwdif(frame, self._parity)
            if self._graph is None:
                yield frame
            else:
                self._waiting.append(frame)
                self._graph.push(frame)
                yield from self._pulled()
        if self._graph:
            yield from self._end()

    def _end(self) -> Iterator[av.VideoFrame]:
        """The graph's last frames; a new graph takes the next ones."""
        self._graph.push(None)
        yield from self._pulled()
        self._graph = None

    def _pulled(self) -> Iterator[av.VideoFrame]:
        while self._waiting:
            try:
                deinterlaced = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            original = self._waiting.pop(0)
            if (self._is_interlaced or original.interlaced_frame) and _is_combed(original):
                self.has_changed = True
                deinterlaced.pts, deinterlaced.time_base = original.pts, original.time_base
                yield deinterlaced
            else:
                yield original


def _is_combed(frame: av.VideoFrame) -> bool:
    """Whether rows alternate between two pictures: three steps to and fro, one below the other."""
    steps = np.diff(frame.to_ndarray(format="gray").astype(np.int16), axis=0)
    steps[1::2] *= -1
    same = [steps[row : len(steps) - 2 + row] for row in range(3)]
    up, down = np.minimum.reduce(same) >= STEP, np.maximum.reduce(same) <= -STEP
    return bool((up | down).mean() > COMBED)


def _bwdif(frame: av.VideoFrame, parity: str) -> av.filter.Graph:
    graph = av.filter.Graph()
    size = {"width": frame.width, "height": frame.height}
    graph.link_nodes(
        graph.add_buffer(**size, format=frame.format, time_base=frame.time_base),
        graph.add("bwdif", f"mode=send_frame:parity={parity}"),
        graph.add("buffersink"),
    ).configure()
    return graph
