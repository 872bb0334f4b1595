"""Draw clips with known motion from a seed: a coloured shape on a smooth path over a still background.

As a program it writes one clip: `python -m ditflow.small.clips OUTPUT.mp4 [--seed N]`.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ditflow.errors import DitflowError, SettingsError
from ditflow.small.vocabulary import COLOURS, SHAPES, caption

BACKDROPS = ("plain", "graded", "waved")
PATHS = ("line", "arc", "curve", "bounce", "zoom")
FRAME_RATE = Fraction(8)
CLIP_MARK = "made clip of seed "  # in a written clip's metadata, before the seed
SUPERSAMPLING = 4  # samples per pixel in each direction

# of a square and a triangle with the area of a circle of radius 1
HALF_SIDE = math.sqrt(math.pi) / 2
CIRCUMRADIUS = math.sqrt(4 * math.pi / math.sqrt(27))


@dataclass(frozen=True)
class Scene:
    """What a seed determines: everything about a clip but its pixels."""

    shape: str  # one of SHAPES
    colour: str  # one of COLOURS
    background: str  # one of COLOURS, not the shape's
    backdrop: str  # one of BACKDROPS
    path: str  # one of PATHS
    centroids: np.ndarray  # [frames, 2] float64, (x, y) in pixels, x to the right, y down
    radii: np.ndarray  # [frames] float64, pixels: radii of circles of the same area


@dataclass(frozen=True)
class MadeClip:
    """A clip and its true motion. The centre of the top left pixel is (0, 0)."""

    frames: np.ndarray  # [painted frames, height, width, 3] uint8
    caption: str  # "a red circle on a blue background"
    centroids: np.ndarray  # [frames, 2] float64, (x, y) in pixels
    scene: Scene


def made_clip(
    seed: int, *, frames: int = 24, width: int = 96, height: int = 64, painted: slice = slice(None)
) -> MadeClip:
    """Draw the clip of a seed (0 or more); `painted` selects the frames to draw.

    The shape stays inside the picture in every frame.
    """
    generator = np.random.default_rng(seed)
    scene = _draw_scene(generator, frames, width, height)
    backdrop = paint_backdrop(generator, scene.background, scene.backdrop, width, height)
    colour = np.array(COLOURS[scene.colour], dtype=np.float64)
    centroids, radii = scene.centroids[painted], scene.radii[painted]
    pictures = np.empty((len(radii), height, width, 3), dtype=np.uint8)
    for picture, centroid, radius in zip(pictures, centroids, radii, strict=True):
        covered = coverage(scene.shape, centroid, radius, width, height)[..., None]
        picture[:] = np.rint(backdrop + covered * (colour - backdrop))
    return MadeClip(pictures, caption(scene.colour, scene.shape, scene.background), scene.centroids, scene)


def _draw_scene(generator: np.random.Generator, frames: int, width: int, height: int) -> Scene:
    colour, background = generator.choice(list(COLOURS), size=2, replace=False)
    shape, backdrop, path = (str(generator.choice(names)) for names in (SHAPES, BACKDROPS, PATHS))
    radius = min(width, height) * generator.uniform(0.17, 0.23)
    growth = generator.uniform(1.3, 1.7) if path == "zoom" else 1.0
    time = np.linspace(0.0, 1.0, frames)
    radii = radius * growth ** (time - 0.5)
    if generator.random() < 0.5:
        radii = radii[::-1].copy()
    margin = radii.max() * (CIRCUMRADIUS if shape == "triangle" else 1.0)
    places = travel(generator, path, time)
    room = np.array([width - 1, height - 1]) - 2 * margin
    return Scene(shape, str(colour), str(background), backdrop, path, margin + places * room, radii)


def travel(generator: np.random.Generator, path: str, time: np.ndarray) -> np.ndarray:
    """Places [frames, 2] on a path in the unit square at times [frames] from 0 to 1."""
    time = time[:, None]
    if path == "arc":
        start, sweep = generator.uniform(0, 2 * math.pi), generator.uniform(0.7, 1.5) * math.pi
        angle = start + sweep * generator.choice([-1, 1]) * time
        reach = generator.uniform(0.6, 1.0, size=2) / 2
        return 0.5 + reach * np.hstack([np.cos(angle), np.sin(angle)])
    if path == "bounce":
        flight = generator.uniform(0.7, 1.6, size=2) * generator.choice([-1, 1], size=2)
        unfolded = generator.uniform(size=2) + flight * time
        return 1 - np.abs(1 - unfolded % 2)  # reflected at the walls
    if path == "zoom":
        start = generator.uniform(0.3, 0.7, size=2)
        return start + generator.uniform(-0.2, 0.2, size=2) * time
    start, end = _far_apart(generator)
    if path == "line":
        return start + (end - start) * time
    bend = generator.uniform(size=2)  # control point of a quadratic Bezier curve
    return (1 - time) ** 2 * start + 2 * time * (1 - time) * bend + time**2 * end


def _far_apart(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two random places in the unit square, more than half its side apart."""
    while True:
        start, end = generator.uniform(size=(2, 2))
        if np.hypot(*(end - start)) > 0.5:
            return start, end


def paint_backdrop(
    generator: np.random.Generator, background: str, backdrop: str, width: int, height: int
) -> np.ndarray:
    """The background, [height, width, 3] float64, 0 ... 255: shades of one colour."""
    angle = generator.uniform(0, 2 * math.pi)
    waves = generator.uniform(1.5, 4.0)
    y, x = np.mgrid[0:height, 0:width]
    along = (x * math.cos(angle) + y * math.sin(angle)) / math.hypot(width, height)
    if backdrop == "plain":
        shade = np.zeros((height, width))
    elif backdrop == "graded":
        shade = (along - along.min()) / np.ptp(along)
    else:
        shade = (1 + np.sin(2 * math.pi * waves * along)) / 2
    return shaded(background, shade)


def shaded(name: str, shade: np.ndarray) -> np.ndarray:
    """Shades of one of COLOURS, [..., 3] float64: from the colour itself at 0 to the greyest at 1."""
    colour, grey = np.array(COLOURS[name], dtype=np.float64), np.full(3, 128.0)
    return colour + 0.35 * shade[..., None] * (grey - colour)


def coverage(shape: str, centroid: np.ndarray, radius: float, width: int, height: int) -> np.ndarray:
    """The share of each pixel that the shape covers, [height, width], 0 ... 1."""
    covered = np.zeros((height, width))
    reach = radius * CIRCUMRADIUS  # the triangle's, which reaches farthest
    columns, rows = (
        slice(max(0, math.floor(middle - reach)), min(size, math.ceil(middle + reach) + 1))
        for middle, size in zip(centroid, (width, height), strict=True)
    )
    offsets = (np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5
    x = (np.arange(width)[columns, None] + offsets).reshape(1, -1) - centroid[0]
    y = (np.arange(height)[rows, None] + offsets).reshape(-1, 1) - centroid[1]
    if shape == "circle":
        inside = x**2 + y**2 <= radius**2
    elif shape == "square":
        inside = np.maximum(np.abs(x), np.abs(y)) <= radius * HALF_SIDE
    else:  # equilateral, one corner up
        inside = np.maximum(y, np.abs(x) * math.sqrt(0.75) - y / 2) <= radius * CIRCUMRADIUS / 2
    parts = (len(y) // SUPERSAMPLING, SUPERSAMPLING, x.size // SUPERSAMPLING, SUPERSAMPLING)
    covered[rows, columns] = inside.reshape(parts).mean(axis=(1, 3))
    return covered


def main(arguments: list[str] | None = None) -> int:
    """Write a made clip to a file; print its path and caption."""
    parser = argparse.ArgumentParser(prog="python -m ditflow.small.clips", description=main.__doc__)
    parser.add_argument("output", type=Path, help="the video to write, such as clip.mp4")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clip, 0 or more (default 0)")
    choice = parser.parse_args(arguments)
    if choice.seed < 0:
        parser.error(f"--seed is {choice.seed}: give 0 or more")

    from ditflow.video import Clip, write_clip

    clip = made_clip(choice.seed)
    try:
        write_clip(Clip(clip.frames, FRAME_RATE), choice.output, metadata=f"{CLIP_MARK}{choice.seed}")
    except DitflowError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    print(choice.output)
    print(clip.caption)
    return 0


if __name__ == "__main__":
    sys.exit(main())
