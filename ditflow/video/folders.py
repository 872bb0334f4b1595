"""Folders of images as video sources."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ditflow.errors import DitflowError
from ditflow.files import regular_file
from ditflow.limits import PICTURE_PIXELS, SOURCE_FRAMES
from ditflow.video.levels import Levels, as_image, deep_pixels, float_image, is_deep

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # by content, whatever the suffix says
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def image_paths(folder: Path) -> list[Path]:
    """The folder's images in natural order, frame2 before frame10. Raises DitflowError if there are none."""
    # hidden files are not images: macOS writes "._frame1.png" beside frame1.png on some disks
    images = []
    for path in folder.iterdir():
        named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        if named and path.exists() and not path.is_dir():  # no broken links
            images.append(path)
        if len(images) > SOURCE_FRAMES:
            raise DitflowError(f"{folder} has more than {SOURCE_FRAMES} images: give a folder with fewer")
    if not images:
        raise DitflowError(f"{folder} has no images: give a video or a folder of {', '.join(SUFFIXES)}")
    return sorted(images, key=_natural)


def warn_of_gaps(paths: list[Path]) -> None:
    """Warn if the numbers in the file names have a gap, where the motion would jump."""
    numbers = [re.findall(r"\d+", path.stem)[-1:] for path in paths]
    if not all(numbers):
        return
    steps = [int(after) - int(before) for (before,), (after,) in pairwise(numbers)]
    for place, step in enumerate(steps):
        if step > min(steps) > 0:
            before, after = paths[place].name, paths[place + 1].name
            logger.warning("%s is followed by %s: images seem to be missing between them", before, after)
            return


def read_images(paths: list[Path], to_array: Callable[[Image.Image], np.ndarray]) -> list[np.ndarray]:
    """Read each image upright, converted by `to_array`.

    Images of more than 8 bits are scaled by the range that all of them use. Raises DitflowError if an image
    cannot be read or the arrays differ in size.
    """
    levels = Levels()
    for path in paths:
        with _opened(path) as image:
            if is_deep(image):
                levels.include(deep_pixels(path, image))
    for note in levels.notes:
        logger.warning("%s has images with %s", paths[0].parent, note)
    frames: list[np.ndarray] = []
    for path in paths:
        with _opened(path) as image:
            if is_deep(image):
                image = as_image(levels.eight_bits(deep_pixels(path, image)), like=image)
            frame = to_array(ImageOps.exif_transpose(image))
        if frames and frame.shape != frames[0].shape:
            raise DitflowError(
                f"{path} is {_size(frame)}, but the images before it are {_size(frames[0])}: give a size"
            )
        frames.append(frame)
    return frames


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, in pixels. Raises DitflowError if it cannot be read."""
    with _opened(path) as image:
        return ImageOps.exif_transpose(image).size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image whose pixels are not yet read. An error meanwhile becomes a DitflowError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _image(regular_file(path))
        with image:
            _check_pixels(path, *image.size)
            yield image
    except DitflowError:
        raise
    except Exception as error:  # Pillow raises many types
        raise DitflowError(f"{path} cannot be read as an image ({error}): replace it") from error


def _image(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        if image := float_image(path):
            return image
        raise DitflowError(
            f"{path} cannot be read as an image of {', '.join(FORMATS)}: replace it by a PNG of 8 or 16 bits"
        ) from None


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > PICTURE_PIXELS:
        raise DitflowError(
            f"{path} is {width}x{height}, more than the accepted {PICTURE_PIXELS} pixels: scale it down"
        )


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], path.name


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"
