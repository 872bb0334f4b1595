"""The motion of a video, on a grid of cells and over the time of a latent frame."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ditflow.optical_flow.camera import camera_motion
from ditflow.optical_flow.dense import CELL, cell_means, chain, flows, resized, trust

SPAN = 4  # frames: those of a latent frame
MOVES = 1 / 16  # cells: content that goes further in a step moves
STILL = 1 / 500  # of the frame: if less than this moves, the video is still


@dataclass(frozen=True)
class Motion:
    """Where the content of each cell goes in SPAN frames, from every frame that has as many after it.

    Displacements are (x, y) in cells, x to the right and y down; trust is from 0 to 1.
    """

    forward: np.ndarray  # [steps, rows, columns, 2] float32
    backward: np.ndarray  # the same, from the end of each step to its start
    trust: np.ndarray  # [steps, rows, columns] float32, of `forward`
    trust_backward: np.ndarray  # the same, of `backward`

    @cached_property
    def camera(self) -> np.ndarray:
        """The part of `forward` that the whole frame shares."""
        return camera_motion(self.forward, self.trust)

    @property
    def objects(self) -> np.ndarray:
        """The part of `forward` that is not the camera's."""
        return self.forward - self.camera

    @property
    def still(self) -> bool:
        moves = np.linalg.norm(self.forward, axis=-1) > MOVES
        return bool((moves * self.trust).sum() <= STILL * self.trust.sum())

    def cut(self, steps: int) -> Motion:
        """The first `steps` steps."""
        return self if len(self.forward) == steps else Motion(*(field[:steps] for field in self._fields))

    def on_grid(self, other: Motion) -> Motion:
        """The motion on the grid of another one."""
        rows, columns = other.trust.shape[1:]
        if self.trust.shape[1:] == (rows, columns):
            return self
        fields = (np.stack([resized(step, rows, columns) for step in field]) for field in self._fields)
        forward, backward, trust, trust_backward = fields
        scale = np.divide((columns, rows), self.trust.shape[:0:-1], dtype=np.float32)
        return Motion(forward * scale, backward * scale, trust, trust_backward)

    def mirrored(self) -> Motion:
        """The motion of the same video with left and right exchanged."""
        forward, backward = (
            field[:, :, ::-1] * np.float32((-1, 1)) for field in (self.forward, self.backward)
        )
        return Motion(forward, backward, self.trust[:, :, ::-1], self.trust_backward[:, :, ::-1])

    def reversed(self) -> Motion:
        """The motion of the same video played backwards."""
        forward, backward, trust, trust_backward = (field[::-1] for field in self._fields)
        return Motion(backward, forward, trust_backward, trust)

    def shifted(self) -> Motion:
        """The motion of the same video from its middle on, then from its start."""
        return Motion(*(np.roll(field, len(field) // 2, axis=0) for field in self._fields))

    @property
    def _fields(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.forward, self.backward, self.trust, self.trust_backward


def measure_motion(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    rows: int,
    columns: int,
) -> Motion:
    """Measure the motion on a grid of `rows` x `columns` cells; a shorter video has one step, or none.

    A step follows the content from frame to frame, so that it may go further than DIS finds at once.
    """
    span = min(SPAN, len(frames) - 1)
    steps, window = [], deque(maxlen=span)
    for flow in flows(frames, rows, columns):
        window.append(flow)
        if len(window) == span:
            there = chain(forward for forward, _ in window)
            back = chain(backward for _, backward in reversed(window))
            known = np.stack([trust(there, back), trust(back, there)], axis=-1)
            steps.append([cell_means(field) for field in (there / CELL, back / CELL, known)])
    if not steps:
        shape = (0, rows, columns)
        return Motion(*np.empty((2, *shape, 2), np.float32), *np.empty((2, *shape), np.float32))
    forward, backward, known = (np.stack(fields) for fields in zip(*steps, strict=True))
    return Motion(forward, backward, known[..., 0], known[..., 1])
