"""Decoded frames as a player shows them: their colours, their shape and their direction."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ditflow.errors import DitflowError
from ditflow.limits import PICTURE_PIXELS, SOURCE_FRAMES
from ditflow.video.interlacing import INTERLACED
from ditflow.video.tone import to_bt709

# numbers of ITU-T H.273
BT709, UNSPECIFIED, BT2020 = 1, 2, 9
MATRICES = (1, 2, 3, 4, 5, 6, 7, 9, 10)  # that FFmpeg converts from, or takes for BT.601
TRANSFERS = {16: "PQ", 18: "HLG"}
# Dolby Vision: tags of streams that only its decoders show rightly, and what decoded frames carry
DOLBY_TAGS = ("dvh1", "dvhe", "dva1", "dvav", "dav1")
DOLBY_DATA = ("DOVI_RPU_BUFFER", "DOVI_METADATA")
# players take larger video for BT.709 and smaller video for BT.601 if it does not say
SD_WIDTH, SD_HEIGHT = 1279, 576
NARROWEST = 64  # pixels; decord reads narrower videos wrong
INVISIBLE = 0.01  # relative; from rounded sizes in a header
# the display matrix (a, b, c, d) shows the pixel (x, y) at (ax + cy, bx + dy), y down
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class Display:
    """How a video's frames are shown."""

    aspect: Fraction  # width of a stored pixel over its height
    transfer: str  # "PQ", "HLG" or "SDR"
    is_wide: bool  # the colours are BT.2020's
    matrix: int | None  # from YUV to RGB; None: as the frames say
    field_order: int  # one of FFmpeg's numbers; 0: unknown
    is_plain: bool  # decord gives the same pixels as PyAV
    notes: tuple[str, ...]  # what is changed for display

    def picture(self, frame: av.VideoFrame) -> Image.Image:
        """The frame as it is shown: RGB, or RGBA if it has an alpha channel."""
        if self.is_wide:
            pixels = to_bt709(self._pixels(frame, "rgb48le"), self.transfer)
        else:
            has_alpha = any(component.is_alpha for component in frame.format.components)
            pixels = self._pixels(frame, "rgba" if has_alpha else "rgb24")
        image = Image.fromarray(pixels)
        size = shown_size(image.size, self.aspect)
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        turn = UPRIGHT.get(_display_matrix(frame))
        return image if turn is None else image.transpose(turn)

    def _pixels(self, frame: av.VideoFrame, layout: str) -> np.ndarray:
        return frame.reformat(format=layout, src_colorspace=self.matrix).to_ndarray()


def display_of(source: Path, stream: av.VideoStream, frame: av.VideoFrame) -> Display:
    """How the stream's frames are shown, from its first frame. Raises DitflowError if they cannot be."""
    context = stream.codec_context
    transfer = TRANSFERS.get(context.color_trc, "SDR")
    is_wide = transfer != "SDR" or context.color_primaries == BT2020
    is_yuv = frame.format.name.startswith(("yuv", "nv", "p0"))
    is_hd = frame.width > SD_WIDTH or frame.height > SD_HEIGHT
    if is_yuv and frame.colorspace not in MATRICES:
        raise DitflowError(
            f"{source} has colours in matrix {int(frame.colorspace)} of H.273, which cannot be read: "
            "convert it to BT.709"
        )
    dolby = context.codec_tag in DOLBY_TAGS
    has_base = transfer != "SDR" or context.color_trc == BT709  # a picture in colours that others show too
    if not has_base and (dolby or any(name in frame.side_data for name in DOLBY_DATA)):
        raise DitflowError(
            f"{source} is in Dolby Vision's own colours (profile 5), which cannot be read: convert it to "
            "HDR10 or BT.709"
        )
    matrix = None
    if is_yuv and frame.colorspace == UNSPECIFIED and (is_wide or is_hd):
        matrix = BT2020 if is_wide else BT709
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if aspect < 0:
        aspect = Fraction(1)
    stored = frame.width, frame.height
    shown = shown_size(stored, aspect)
    if shown[0] * shown[1] > PICTURE_PIXELS:
        raise DitflowError(
            f"{source} has a pixel aspect ratio of {aspect}: {_words(stored)} is shown as {_words(shown)}, "
            f"more than the accepted {PICTURE_PIXELS} pixels: correct the ratio"
        )
    notes = []
    if shown != stored:
        notes.append(f"scaled from {_words(stored)} to {_words(shown)}")
    if transfer != "SDR":
        notes.append(f"tone-mapped from HDR ({transfer}) to BT.709")
    if dolby:
        notes.append("without Dolby Vision's changes to it")
    if transfer == "SDR" and is_wide:
        notes.append("converted from BT.2020's colours to BT.709's")
    field_order = int(getattr(context, "field_order", 0))  # not in old versions of PyAV
    is_plain = (  # decord converts other formats differently
        frame.format.name in ("yuv420p", "yuvj420p")
        and frame.width % 2 == frame.height % 2 == 0
        and frame.width >= NARROWEST
        and stream.frames <= SOURCE_FRAMES  # decord allocates as many as the header claims
        and _display_matrix(frame) in (None, (1, 0, 0, 1))
        and not (notes or matrix or frame.interlaced_frame or field_order in INTERLACED)
    )
    return Display(aspect, transfer, is_wide, matrix, field_order, is_plain, tuple(notes))


def shown_size(size: tuple[int, int], aspect: Fraction) -> tuple[int, int]:
    """The size with square pixels. One side grows, and none shrinks, so that no detail is lost."""
    width, height = size
    if abs(aspect - 1) < INVISIBLE:
        return size
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """The directions of the display matrix. Its scale is part of the pixel aspect ratio."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]  # 16.16 fixed point
    return tuple(int(np.sign(round(value / 65536, 1))) for value in (a, b, c, d))


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
