"""A video of a drawn motion: it stands in for a clip with this motion."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle

import numpy as np

from ditflow.motion.drawing import Drawing
from ditflow.motion.layers import Ground, Object, layers_of
from ditflow.motion.texture import Texture
from ditflow.video import Clip

# darkest and lightest colours. Optical flow looks at the one channel in which colours differ most; objects
# are lighter than the ground, so that this is lightness, in which their texture is seen too
GROUND = (36, 43, 53), (92, 98, 104)
OBJECTS = (
    ((196, 84, 28), (255, 214, 150)),
    ((52, 116, 190), (176, 232, 255)),
    ((140, 150, 30), (250, 250, 160)),
    ((170, 70, 150), (255, 200, 236)),
    ((40, 140, 112), (170, 246, 212)),
)
PLAIN = 56  # grey of the ground if no camera is given
DETAIL = 6, 1 / 30  # pixels, and share of the shorter side: the larger one is the size of details
SAMPLES = 8  # of each pixel, so that edges are soft
WITHIN = (np.stack([np.arange(SAMPLES), np.arange(SAMPLES) * 3 % SAMPLES], axis=-1) + 0.5) / SAMPLES


def preview(
    drawing: Drawing,
    frames: int,
    size: tuple[int, int],  # width and height, pixels
    frame_rate: Fraction,
) -> Clip:
    """Textured surfaces that move as drawn: what the camera shows, and objects, later ones over earlier ones.

    Frame i of n is that of time i / (n - 1). Without a camera the ground is plain grey.
    """
    layers = layers_of(drawing, size, np.arange(frames) / max(frames - 1, 1))
    detail = max(DETAIL[0], DETAIL[1] * min(size))
    colours = cycle(OBJECTS)
    surfaces = [
        _Surface(
            layer,
            Texture(number, detail, layer.magnification),
            *np.float32(GROUND if isinstance(layer, Ground) else next(colours)),
        )
        for number, layer in enumerate(layers)
    ]
    pictures = np.full((frames, size[1], size[0], 3), PLAIN, np.uint8)
    for frame, picture in enumerate(pictures):
        for surface in surfaces:
            surface.paint(frame, picture)
    return Clip(pictures, frame_rate)


@dataclass(frozen=True)
class _Surface:
    """A layer and how it looks."""

    layer: Ground | Object
    texture: Texture
    dark: np.ndarray  # [3]
    light: np.ndarray  # [3]

    def paint(self, frame: int, picture: np.ndarray) -> None:
        """Paint the layer over a picture [height, width, 3]."""
        low, high = (np.clip(corner, 0, picture.shape[1::-1]) for corner in self.layer.bounds(frame))
        (left, top), (right, bottom) = np.floor(low).astype(int), np.ceil(high).astype(int)
        if left >= right or top >= bottom:
            return
        part = picture[top:bottom, left:right]
        y, x = np.mgrid[top:bottom, left:right]
        corners = np.stack([x.ravel(), y.ravel()], axis=-1)  # of its pixels
        covered = sum(self.layer.covers(frame, corners + place).astype(np.float32) for place in WITHIN)
        coverage = covered.reshape(*x.shape, 1) / SAMPLES
        content = self.layer.content(frame, np.array([left, top]) + [(0.5, 0.5), (1.5, 0.5), (0.5, 1.5)])
        shades = self.texture.shades(content, *x.shape)[..., None]
        colour = self.dark + shades * (self.light - self.dark)
        part[:] = np.rint(part + coverage * (colour - part))
