"""Folders of images as video sources."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ditflow.errors import DitflowError
from ditflow.limits import SOURCE_FRAMES
from ditflow.video.timeline import check_pixels

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # what the file is, whatever it is called
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def image_paths(folder: Path) -> list[Path]:
    """The folder's images in natural order, frame2 before frame10. Raises DitflowError if there are none."""
    # macOS keeps "._frame1.png" beside frame1.png on foreign disks
    images = []
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            images.append(path)
        if len(images) > SOURCE_FRAMES:
            raise DitflowError(f"{folder} has more than {SOURCE_FRAMES} images in it: give a part of it")
    if not images:
        raise DitflowError(f"{folder} has no images in it: give a video or a folder of {', '.join(SUFFIXES)}")
    return sorted(images, key=_natural)


def read_images(paths: list[Path], place: Callable[[Image.Image], np.ndarray]) -> list[np.ndarray]:
    """Each image upright, through `place`. Raises DitflowError for an unreadable one or a second size."""
    frames: list[np.ndarray] = []
    for path in paths:
        try:
            with _opened(path) as image:
                check_pixels(path, *image.size)
                frame = place(ImageOps.exif_transpose(image))
        except DitflowError:
            raise
        except Exception as error:  # Pillow raises many kinds
            raise DitflowError(f"{path} is not an image that can be read ({error}): replace it") from error
        if frames and frame.shape != frames[0].shape:
            raise DitflowError(
                f"{path} is {_size(frame)}, the images before it {_size(frames[0])}: give a size"
            )
        frames.append(frame)
    return frames


def _opened(path: Path) -> Image.Image:
    """An image, of which no more than the header is read; its own limit gives way to ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], path.name


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"
