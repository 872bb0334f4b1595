"""Draw scores by block: a panel for each reference, with a line for each noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 900, 300  # pixels of a panel's axes
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 70, 60  # pixels around them
LETTER, DOT = 16, 4
INK, GRID, PAPER, CHOSEN = (30, 30, 30), (220, 220, 220), (255, 255, 255), (255, 240, 200)
LINES = ((0, 90, 181), (220, 50, 32), (0, 130, 80), (150, 70, 170), (190, 120, 0))  # colours in turn


def block_chart(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]],  # title: line: a score for each block
    blocks: Sequence[int],
    chosen: int | None,  # this block's place is marked
) -> np.ndarray:  # [height, width, 3] uint8
    """Scores from 0 to 1 by block; a score that is None has no dot."""
    panel = TOP + HEIGHT + BOTTOM
    image = Image.new("RGB", (LEFT + WIDTH + RIGHT, panel * len(panels)), PAPER)
    draw = ImageDraw.Draw(image)
    for index, (title, lines) in enumerate(panels.items()):
        _panel(draw, index * panel + TOP, title, lines, blocks, chosen)
    return np.asarray(image)


def _panel(
    draw: ImageDraw.ImageDraw,
    top: int,  # of the axes
    title: str,
    lines: Mapping[str, Sequence[float | None]],
    blocks: Sequence[int],
    chosen: int | None,
) -> None:
    font, bottom, column = ImageFont.load_default(LETTER), top + HEIGHT, WIDTH / len(blocks)
    middles = [LEFT + (index + 0.5) * column for index in range(len(blocks))]
    if chosen is not None:
        middle = middles[list(blocks).index(chosen)]
        draw.rectangle((middle - column / 2, top, middle + column / 2, bottom), CHOSEN)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - tick * HEIGHT
        draw.line((LEFT, y, LEFT + WIDTH, y), INK if tick == 0 else GRID)
        draw.text((LEFT - 10, y), f"{tick:g}", INK, font, anchor="rm")
    every = -(-len(blocks) * 2 * LETTER // WIDTH)  # so that labels do not touch
    for block, middle in list(zip(blocks, middles, strict=True))[::every]:
        draw.text((middle, bottom + 8), str(block), INK, font, anchor="mt")
    draw.text((LEFT + WIDTH / 2, bottom + 34), "block", INK, font, anchor="mt")
    draw.text((LEFT, top - 50), title, INK, font, anchor="lm")
    x = LEFT
    for index, (name, scores) in enumerate(lines.items()):
        colour = LINES[index % len(LINES)]
        draw.line((x, top - 22, x + 24, top - 22), colour, 3)
        draw.text((x + 32, top - 22), name, INK, font, anchor="lm")
        x += 56 + font.getlength(name)
        _line(draw, middles, [None if s is None else bottom - max(0, s) * HEIGHT for s in scores], colour)


def _line(
    draw: ImageDraw.ImageDraw,
    middles: Sequence[float],
    heights: Sequence[float | None],
    colour: tuple[int, int, int],
) -> None:
    points = [(x, y) for x, y in zip(middles, heights, strict=True) if y is not None]
    draw.line(points, colour, 3, joint="curve")
    for x, y in points:
        draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), colour)
