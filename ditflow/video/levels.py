"""Images of more than 8 bits: which levels are black and white, by the range that a clip's images use."""

from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ditflow.video.timeline import MOST_PIXELS

WHITES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
HIGHLIGHTS = 4  # float levels up to here have their white at 1
OVERSHOOT = 0.05  # of white; levels that far below 0 are left by resizing
ORIENTATION = 0x0112  # EXIF tag
COLOURS = ("RGB;16", "RGBA;16", "LA;16")  # Pillow's layouts of deep colour images
FLOAT_COLOURS = {"rgbf32": 3, "rgbaf32": 4}  # channels of FFmpeg's layouts
PIXELS = "float pixels"  # key of an image's information
DECODERS = {"PNG": "png", "TIFF": "tiff"}


class Levels:
    """The range of levels of a clip's deep images; floats and whole numbers have their own."""

    def __init__(self) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}  # by numpy's letter for the kind

    def include(self, pixels: np.ndarray) -> None:
        """Widen the range by an image's. Raises ValueError if it has a level that is not a finite number."""
        if not np.isfinite(pixels).all():
            raise ValueError("it has levels that are not finite numbers")
        if pixels.dtype != np.uint8:
            kind, colours = pixels.dtype.kind, pixels[..., :3] if pixels.ndim == 3 else pixels
            least, most = self._ranges.get(kind, (np.inf, -np.inf))
            self._ranges[kind] = min(least, float(colours.min())), max(most, float(colours.max()))

    def eight_bits(self, pixels: np.ndarray) -> np.ndarray:
        """An included image with levels of 0 to 255."""
        if pixels.dtype == np.uint8:
            return pixels
        black, white = self._ends(pixels.dtype.kind)
        scaled = (pixels - np.float64(black)) * (255 / (white - black))
        # alpha is stored in the same bits, or in all 16
        if pixels.shape[2:] == (4,) and pixels[..., 3].max() > white:
            scaled[..., 3] = pixels[..., 3] / 257
        return np.rint(scaled.clip(0, 255)).astype(np.uint8)

    @property
    def notes(self) -> list[str]:
        """What is assumed about the levels, unless they are plain 16 bits."""
        notes = []
        for kind, (least, most) in self._ranges.items():
            black, white = self._ends(kind)
            if kind == "f" or (black, white) != (0, WHITES[-1]):
                ends = f"{black:g} is black, {white:g} is white"
                notes.append(f"levels from {least:.6g} to {most:.6g}: {ends}")
        return notes

    def _ends(self, kind: str) -> tuple[float, float]:
        """The levels of black and white."""
        least, most = self._ranges[kind]
        largest = max(most, -least)
        if kind == "f" and largest <= HIGHLIGHTS:
            white = 1.0
        else:
            white = next((float(white) for white in WHITES if largest <= white), largest)
        return (-white if least < -OVERSHOOT * white else 0.0), white


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits in a channel, by its header."""
    if image.mode[0] in "IF":
        return True
    layout = image.tile[0][3] if image.tile else ""
    layout = layout if isinstance(layout, str) else str(layout[0])
    return layout.startswith(COLOURS)


def float_image(path: Path) -> Image.Image | None:
    """A TIFF of float colours, which Pillow cannot open, for `deep_pixels`; None if the file is another."""
    with path.open("rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*"):
            return None
    decoder = av.CodecContext.create("tiff", "r")
    decoder.options = MOST_PIXELS
    with suppress(av.FFmpegError, IndexError):
        frame = [*decoder.decode(av.Packet(path.read_bytes())), *decoder.decode(None)][0]
        channels = FLOAT_COLOURS.get(frame.format.name[:-2])
        if channels:
            rows = np.frombuffer(
                frame.planes[0], np.dtype("<f4" if frame.format.name.endswith("le") else ">f4")
            )
            rows = rows.reshape(frame.height, -1)[:, : frame.width * channels]
            image = Image.new("F", (frame.width, frame.height))
            image.info[PIXELS] = rows.reshape(frame.height, frame.width, channels).astype(np.float32)
            return image
    return None


def deep_pixels(path: Path, image: Image.Image) -> np.ndarray:
    """The levels of a deep image, [height, width] grey or [height, width, 3 or 4].

    Of a colour image Pillow keeps 8 bits, FFmpeg all.
    """
    if PIXELS in image.info:
        return image.info[PIXELS]
    if image.mode[0] not in "IF" and image.format in DECODERS:
        decoder = av.CodecContext.create(DECODERS[image.format], "r")
        decoder.options = MOST_PIXELS
        with suppress(av.FFmpegError, IndexError):  # a compression that only Pillow knows
            frame = [*decoder.decode(av.Packet(path.read_bytes())), *decoder.decode(None)][0]
            return frame.reformat(format="rgba64le").to_ndarray()
    return np.asarray(image)


def as_image(pixels: np.ndarray, like: Image.Image) -> Image.Image:
    """Pixels as an image with the orientation of another."""
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = like.getexif().get(ORIENTATION, 1)
    return image
