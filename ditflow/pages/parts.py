"""What the page's sections are made of: templates, and pictures and videos as data URLs."""

from __future__ import annotations

import base64
import re
from importlib.resources import files
from io import BytesIO

import numpy as np
from PIL import Image


def file(name: str) -> str:
    """The text of a file of this package."""
    return (files("ditflow.pages") / name).read_text(encoding="utf-8")


def filled(template: str, **parts: str) -> str:
    """Fill a template: each `{{ name }}` becomes the part of that name."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: parts[found[1]], file(template))


def png(picture: np.ndarray) -> str:  # [height, width, 3 or 4] uint8
    return _packed(picture, "PNG")


def jpeg(
    picture: np.ndarray,  # [height, width, 3] uint8
    largest: tuple[int, int],  # pixels; a larger picture is reduced
) -> str:
    return _packed(picture, "JPEG", largest, quality=88)


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _packed(picture: np.ndarray, format: str, largest: tuple[int, int] | None = None, **options: int) -> str:
    image, packed = Image.fromarray(picture), BytesIO()
    if largest:
        image.thumbnail(largest)
    image.save(packed, format, **options)
    return data_url(f"image/{format.lower()}", packed.getvalue())
