"""Fit images of any size and mode to a given size, as RGB."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

FITS: dict[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {
    "crop": lambda image, size: ImageOps.fit(image, size, Image.Resampling.LANCZOS),
    "pad": lambda image, size: ImageOps.pad(image, size, Image.Resampling.LANCZOS, color="black"),
    "stretch": lambda image, size: image.resize(size, Image.Resampling.LANCZOS),
}


def fitted(
    image: Image.Image,
    size: tuple[int, int] | None,  # (width, height); None keeps the picture's own
    fit: str,  # a key of FITS
) -> np.ndarray:  # [height, width, 3] uint8
    image = _rgb(image)
    return np.asarray(image if size is None else FITS[fit](image, size))


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; transparent parts become black, as the colour stored under them is arbitrary."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image.convert("RGB")
