"""The geometry of a drawing: where what the camera shows, each object and their content are in every frame.

Places [n, 2] are (x, y) from the frame's top left corner, in the unit in which the frame's size is given:
cells for a target, pixels for a preview.
"""

from __future__ import annotations

import numpy as np

from ditflow.motion.drawing import Camera, Drawing, Figure


def layers_of(
    drawing: Drawing,
    size: tuple[int, int],  # width and height
    times: np.ndarray,  # [frames] from 0 to 1
) -> list[Ground | Object]:
    """All that is drawn, from the bottom."""
    ground = [Ground(drawing.camera, size, times)] if drawing.camera else []
    return ground + [Object(figure, size, times) for figure in drawing.figures]


class Ground:
    """What the camera shows: a plane that it looks at."""

    def __init__(self, camera: Camera, size: tuple[int, int], times: np.ndarray):
        pan, zoom, rotation = camera.at(times)
        self.size = np.array(size)
        self.middle = self.size / 2 @ (1, 1j)
        self.pan = pan * size @ (1, 1j)
        self.turn = zoom * np.exp(-1j * rotation)
        self.magnification = zoom  # [frames] lengths in the frame, of those of the content

    def bounds(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """The top left and the bottom right corner: those of the frame."""
        return np.zeros(2), self.size

    def covers(self, frame: int, places: np.ndarray) -> np.ndarray:
        """Whether the ground covers these places: all of them."""
        return np.ones(len(places), bool)

    cells = covers

    def content(self, frame: int, places: np.ndarray) -> np.ndarray:
        """The places [n, 2] on the plane that are at these ones of the frame."""
        return _pairs((places @ (1, 1j) - self.middle) / self.turn[frame] + self.pan[frame])

    def moved(self, query: int, key: int, places: np.ndarray) -> np.ndarray:
        """Where the content at these places of the query frame is in the key frame."""
        plane = self.content(query, places) @ (1, 1j)
        return _pairs((plane - self.pan[key]) * self.turn[key] + self.middle)


class Object:
    """A figure whose content moves and grows with it."""

    def __init__(self, figure: Figure, size: tuple[int, int], times: np.ndarray):
        center, extent = figure.at(times)
        self.center = center * size  # [frames, 2]
        self.half = extent * size / 2  # [frames, 2]
        self.own = self.half.mean(axis=0)  # half the size of the content
        self.magnification = self.half / self.own  # [frames, 2] lengths in the frame, of those of the content
        self.shape = figure.shape

    def bounds(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """The top left and the bottom right corner."""
        return self.center[frame] - self.half[frame], self.center[frame] + self.half[frame]

    def covers(self, frame: int, places: np.ndarray) -> np.ndarray:
        """Whether the figure covers these places."""
        x, y = np.abs(self._shares(frame, places)).T
        return (np.maximum(x, y) if self.shape == "box" else np.hypot(x, y)) <= 1

    def cells(self, frame: int, places: np.ndarray) -> np.ndarray:
        """The cells whose middle is covered; if there is none, the one around the centre."""
        covered = self.covers(frame, places)
        return covered if covered.any() else (np.abs(places - self.center[frame]) <= 0.5).all(axis=-1)

    def content(self, frame: int, places: np.ndarray) -> np.ndarray:
        """The places [n, 2] of the content, from its middle, that are at these ones of the frame."""
        return self._shares(frame, places) * self.own

    def moved(self, query: int, key: int, places: np.ndarray) -> np.ndarray:
        """Where the content at these places of the query frame is in the key frame.

        Places outside the figure move as its nearest point.
        """
        inside = np.clip(self._shares(query, places), -1, 1)
        growth = self.half[key] - self.half[query]
        return places + self.center[key] - self.center[query] + inside * growth

    def _shares(self, frame: int, places: np.ndarray) -> np.ndarray:
        """From -1 to 1 on each axis between the figure's sides."""
        return (places - self.center[frame]) / self.half[frame]


def _pairs(places: np.ndarray) -> np.ndarray:
    """Complex places x + iy as [n, 2]."""
    return np.stack([places.real, places.imag], axis=-1)
