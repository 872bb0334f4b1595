"""Made videos whose motion is known."""

import numpy as np

from ditflow.optical_flow.motion import Motion


def texture(height=96, width=144, seed=0):
    """A smooth random picture [height, width, 3] without end: it can be rolled."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    picture = np.fft.ifft2(np.fft.fft2(noise) * _band(height, width)).real
    grey = np.clip(128 + 60 * picture / picture.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _band(height, width):
    """Passes details of about five pixels and more."""
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    return np.exp(-((np.hypot(x, y) / 0.1) ** 2))


def pan(x, y, frames=9, height=96, width=144, seed=0):
    """A texture that moves (x, y) pixels a frame."""
    picture = texture(height, width, seed)
    return np.stack([np.roll(picture, (frame * y, frame * x), axis=(0, 1)) for frame in range(frames)])


def with_object(video, x, y, seed=1):
    """A square with another texture, on a video, that moves (x, y) pixels a frame."""
    pictures, inside = video.copy(), texture(32, 32, seed)
    for frame, picture in enumerate(pictures):
        top, left = 32 + frame * y, 48 + frame * x
        picture[top : top + 32, left : left + 32] = inside
    return pictures


def uniform(x, y, steps=4, rows=6, columns=8, trust=1.0):
    """The motion of a video of which all content moves (x, y) cells a step."""
    forward = np.broadcast_to(np.float32((x, y)), (steps, rows, columns, 2))
    known = np.full((steps, rows, columns), trust, np.float32)
    return Motion(forward, -forward, known, known)
