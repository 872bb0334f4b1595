"""Draw scenes that choose a motion: two objects, a ground that pans, a short line, and paths to be drawn.

Places are (x, y) in pixels, x to the right and y down; the centre of the top left pixel is (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import yaml

from ditflow.motion.drawing import Figure
from ditflow.small.clips import BACKDROPS, coverage, paint_backdrop, shaded, travel
from ditflow.small.vocabulary import COLOURS

ROUND = ("circle", "square")  # shapes that reach no farther than their radius in each direction
DRAWN_PATHS = ("line", "arc", "bounce", "zoom")
SHORT_LINE = (28, 18)  # pixels of width and height: doubled, it stays in the frame
FAR = 24  # pixels, three tokens: the extent of a drawn path along at least one axis


@dataclass(frozen=True)
class MadeScene:
    """A clip of objects on a ground, and their true motion. No object hides another."""

    frames: np.ndarray  # [frames, height, width, 3] uint8
    centroids: np.ndarray  # [objects, frames, 2] float64
    masks: np.ndarray  # [objects, frames, height, width] bool: pixels that are at least half an object's
    ground: np.ndarray  # [frames, 2] float64: how far the ground has moved since the first frame


def two_objects(seed: int, *, frames: int = 24, width: int = 96, height: int = 64) -> MadeScene:
    """The first object goes across, the second one up or down beside it; the ground is still."""
    generator = np.random.default_rng(seed)
    background, *colours = _colours(generator, 3)
    backdrop = str(generator.choice(BACKDROPS))
    radii = min(width, height) * generator.uniform(0.14, 0.17, size=2)
    shapes = generator.choice(ROUND, size=2)
    margin = math.ceil(radii.max())
    time = np.linspace(0, 1, frames)
    along = np.stack([time[:: generator.choice([-1, 1])] for _ in shapes])  # 0 to 1, or back
    level = np.full(frames, generator.uniform(margin, height - 1 - margin))
    across = np.stack([_between(3 * margin, width - 1 - margin, along[0]), level], axis=-1)
    beside = np.full(frames, float(margin))
    down = np.stack([beside, _between(margin, height - 1 - margin, along[1])], axis=-1)
    centroids = np.stack([across, down])
    if generator.random() < 0.5:  # the second object on the right
        centroids[..., 0] = width - 1 - centroids[..., 0]
    ground = paint_backdrop(generator, background, backdrop, width, height)
    return _scene(np.stack([ground] * frames), shapes, colours, centroids, radii, np.zeros((frames, 2)))


def short_line(seed: int, *, frames: int = 24, width: int = 96, height: int = 64) -> MadeScene:
    """One object on a straight line around the middle, so short that twice as far is still in the frame."""
    generator = np.random.default_rng(seed)
    background, colour = _colours(generator, 2)
    backdrop, shape = str(generator.choice(BACKDROPS)), generator.choice(ROUND)
    radius = min(width, height) * generator.uniform(0.17, 0.2)
    angle, time = generator.uniform(0, 2 * math.pi), np.linspace(-0.5, 0.5, frames)[:, None]
    line = time * SHORT_LINE * (math.cos(angle), math.sin(angle))
    centroids = (np.array([width - 1, height - 1]) / 2 + line)[None]
    ground = paint_backdrop(generator, background, backdrop, width, height)
    return _scene(np.stack([ground] * frames), [shape], [colour], centroids, [radius], np.zeros((frames, 2)))


def panned(seed: int, *, frames: int = 24, width: int = 96, height: int = 64) -> MadeScene:
    """A ground of crossed waves that moves at a constant speed, and an object on a line of its own."""
    generator = np.random.default_rng(seed)
    background, colour = _colours(generator, 2)
    shape, radius = generator.choice(ROUND), min(width, height) * generator.uniform(0.14, 0.17)
    time = np.linspace(0, 1, frames)
    heading, distance = generator.uniform(0, 2 * math.pi), generator.uniform(20, 32)
    ground = time[:, None] * distance * (math.cos(heading), math.sin(heading))
    margin = math.ceil(radius)
    room = np.array([width - 1, height - 1]) - 2 * margin
    centroids = (margin + travel(generator, "line", time) * room)[None]
    pictures = shaded(background, _crossed_waves(generator, ground, width, height))
    return _scene(pictures, [shape], [colour], centroids, [radius], ground)


def drawn_figure(
    seed: int, path: Literal["line", "arc", "bounce", "zoom"], *, frames: int = 24, size: tuple = (96, 64)
) -> Figure:
    """An object on a path inside a frame of `size`, width and height; with `zoom` it grows on a line.

    It has a point for each of `frames`, so that its places there are exact.
    """
    generator, sides = np.random.default_rng(seed), np.array(size)
    shape = str(generator.choice(("ellipse", "box")))
    time = np.linspace(0, 1, frames)
    growth = generator.uniform(1.5, 1.8) if path == "zoom" else 1.0
    radii = min(size) * generator.uniform(0.14, 0.17) * growth**time
    room = sides - 1 - 2 * radii.max()
    while True:
        centroids = radii.max() + travel(generator, "line" if path == "zoom" else path, time) * room
        if np.ptp(centroids, axis=0).max() >= FAR:
            return Figure(shape, time, (centroids + 0.5) / sides, 2 * radii[:, None] / sides)


def motion_text(figure: Figure) -> str:
    """The text of a motion file with one object."""
    points = zip(figure.times, figure.center, figure.size, strict=True)
    names = "time", "center", "size"
    path = [{name: _plain(value) for name, value in zip(names, point, strict=True)} for point in points]
    return yaml.safe_dump({"objects": [{"shape": figure.shape, "path": path}]}, default_flow_style=None)


def _colours(generator: np.random.Generator, count: int) -> list[str]:
    return [str(name) for name in generator.choice(list(COLOURS), size=count, replace=False)]


def _between(start: float, end: float, share: np.ndarray) -> np.ndarray:
    return start + (end - start) * share


def _plain(value: np.ndarray) -> float | list[float]:
    return np.round(value, 5).tolist()


def _crossed_waves(generator: np.random.Generator, moved: np.ndarray, width: int, height: int) -> np.ndarray:
    """Shades [frames, height, width], 0 ... 1, of a pattern that has moved by `moved` [frames, 2]."""
    turn = generator.uniform(0, 2 * math.pi)
    lengths, phases = generator.uniform(16, 26, size=2), generator.uniform(0, 2 * math.pi, size=2)
    y, x = np.mgrid[:height, :width]
    x, y = (axis - shift[:, None, None] for axis, shift in zip((x, y), moved.T, strict=True))
    waves = [
        np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / length + phase)
        for angle, length, phase in zip((turn, turn + math.pi / 2), lengths, phases, strict=True)
    ]
    return (2 + sum(waves)) / 4


def _scene(
    pictures: np.ndarray,  # [frames, height, width, 3] float64, the ground
    shapes: list[str],
    colours: list[str],
    centroids: np.ndarray,  # [objects, frames, 2]
    radii: list[float],
    ground: np.ndarray,
) -> MadeScene:
    height, width = pictures.shape[1:3]
    covered = np.stack(
        [
            [coverage(shape, centroid, radius, width, height) for centroid in path]
            for shape, path, radius in zip(shapes, centroids, radii, strict=True)
        ]
    )
    for each, colour in zip(covered, colours, strict=True):
        pictures = pictures + each[..., None] * (np.array(COLOURS[colour]) - pictures)
    return MadeScene(np.rint(pictures).astype(np.uint8), centroids, covered >= 0.5, ground)
