"""Draw motion flow: colours, sheets and arrows. Flow is (x, y) in latent patches, x to the right, y down.

Flow that is NaN is free: nothing is asked of the motion there, or nothing is known of it.
"""

from math import ceil, hypot

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# the colour wheel of the Middlebury flow benchmark: red to the right, then clockwise; hues in which the eye
# distinguishes more shades take a larger share
HUES = np.array([(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0)])
HUE_TURNS = np.cumsum([0, 15, 6, 4, 11, 13, 6]) / 55
BEYOND = 0.75  # brightness of vectors longer than the scale

HOT, UNKNOWN = (190, 20, 20), 150  # full colour of a heat map; grey, also of free flow
STRIPE, STRIPE_WIDTH, STRIPE_STEP = 175, 2, 8  # lighter grey, on free flow in a sheet; pixels
RIM = 64  # pixels: radius of a colour wheel

INK, PAPER = (20, 20, 20), (225, 225, 225)  # grey paper, as white means still
LETTER, GAP, WHEEL = 14, 6, 96  # pixels: letter height, space between pictures, legend wheel
EDGE, LINE = 16, 24  # pixels: around a sheet and its legend, and from line to line of the legend
SCALE_SHARE = 95  # percentile of the moving vectors' lengths that is the scale

ARROW_SPACING = 24  # smallest distance between arrows, pixels
HEAD, SHAFT, OUTLINE = 7.0, 1.6, 1.2  # pixels: arrow head, shaft width, dark edge
SLANT = hypot(1, 2)  # an edge of width 1 reaches this far beyond the tip of a head as long as it is wide
SMOOTH = 4  # arrows are drawn this much larger, then averaged down


def colour_wheel(
    flow: np.ndarray,  # [h, w, 2]
    largest: float,  # the length shown in full colour
) -> np.ndarray:  # [h, w, 3] uint8
    """Colours: hue = direction, saturation = length / largest, white = still; longer vectors are darker.

    Free flow is grey.
    """
    x, y = flow[..., 0].astype(np.float64), flow[..., 1].astype(np.float64)
    turn = np.arctan2(y, x) / (2 * np.pi) % 1
    hue = np.stack([np.interp(turn, HUE_TURNS, HUES[:, channel]) for channel in range(3)], axis=-1)
    length = np.hypot(x, y)[..., None]
    share = np.where(length > 0, length / max(largest, np.finfo(np.float64).tiny), 0)
    colour = np.where(share <= 1, 1 - np.minimum(share, 1) * (1 - hue), BEYOND * hue)
    return np.rint(np.where(np.isnan(length), UNKNOWN, colour * 255)).astype(np.uint8)


def wheel() -> np.ndarray:  # [2 * RIM, 2 * RIM, 4] uint8
    """The colours of all directions, transparent outside of the circle."""
    reach = (np.arange(2 * RIM) + 0.5) / RIM - 1
    vectors = np.stack(np.meshgrid(reach, reach), axis=-1)
    inside = 255 * (np.hypot(vectors[..., 0], vectors[..., 1]) <= 1)
    return np.dstack([colour_wheel(vectors, 1.0), inside.astype(np.uint8)])


def heat(
    values: np.ndarray,  # [h, w] from 0
    largest: float,  # the value shown in full colour
    known: np.ndarray,  # [h, w] from 0 to 1
) -> np.ndarray:  # [h, w, 3] uint8
    """White for 0, red for `largest` and more; what is not known fades to grey."""
    share = np.clip(values / max(largest, np.finfo(np.float64).tiny), 0, 1)[..., None]
    known = known[..., None]
    colour = 255 - share * (255 - np.array(HOT))
    return np.rint(known * colour + (1 - known) * UNKNOWN).astype(np.uint8)


def flow_sheet(
    flow: np.ndarray,  # [frames (query), frames (key), h, w, 2]
    scale: int,  # pixels per patch
) -> np.ndarray:  # [height, width, 3] uint8
    """A matrix of pictures on one scale: a row for each query frame, a column for each key frame.

    Free flow is grey with stripes.
    """
    frames, _, height, width, _ = flow.shape
    font = ImageFont.load_default(LETTER)
    largest = scale_of(flow)
    margin = EDGE + ceil(font.getlength(f"query {frames - 1}")) + 2 * GAP
    column = max(width * scale, ceil(font.getlength(f"key {frames - 1}"))) + GAP
    row = max(height * scale, LETTER) + GAP
    top = EDGE + LETTER + GAP
    legend = _legend(largest, font, free=bool(np.isnan(flow).any()))
    right, bottom = margin + frames * column - GAP, top + frames * row - GAP
    size = (max(right + EDGE, legend.width), bottom + legend.height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for key in range(frames):
        draw.text(
            (margin + key * column + width * scale / 2, top - GAP), f"key {key}", INK, font, anchor="ms"
        )
    for query in range(frames):
        y = top + query * row
        draw.text((margin - 2 * GAP, y + height * scale / 2), f"query {query}", INK, font, anchor="rm")
        for key in range(frames):
            picture = _sheet_picture(flow[query, key], largest, scale)
            sheet.paste(Image.fromarray(picture), (margin + key * column, y))
    sheet.paste(legend, (0, bottom))
    return np.asarray(sheet)


def _sheet_picture(
    flow: np.ndarray,  # [h, w, 2]
    largest: float,
    scale: int,
) -> np.ndarray:  # [h * scale, w * scale, 3] uint8
    picture = colour_wheel(flow, largest).repeat(scale, axis=0).repeat(scale, axis=1)
    free = np.isnan(flow).any(axis=-1).repeat(scale, axis=0).repeat(scale, axis=1)
    y, x = np.indices(free.shape)
    picture[free & ((x + y) % STRIPE_STEP < STRIPE_WIDTH)] = STRIPE
    return picture


def arrows(
    frame: np.ndarray,  # [H, W, 3] uint8
    flow: np.ndarray,  # [h, w, 2]
) -> np.ndarray:  # [H, W, 3] uint8
    """Draw arrows to scale on a frame, from the middle of each patch to where the flow takes it.

    If patches are small, only every second, third, ... has an arrow. Still and free patches have none.
    """
    (frame_height, frame_width), (height, width) = frame.shape[:2], flow.shape[:2]
    patch_x, patch_y = frame_width / width, frame_height / height
    step_x, step_y = ceil(ARROW_SPACING / patch_x), ceil(ARROW_SPACING / patch_y)
    image = Image.fromarray(frame)
    large = image.resize((frame_width * SMOOTH, frame_height * SMOOTH), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    for y in range(step_y // 2, height, step_y):
        for x in range(step_x // 2, width, step_x):
            start = ((x + 0.5) * patch_x, (y + 0.5) * patch_y)
            _arrow(draw, start, (flow[y, x, 0] * patch_x, flow[y, x, 1] * patch_y))
    return np.asarray(large.reduce(SMOOTH))


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[float, float], reach: tuple[float, float]) -> None:
    """Draw a white arrow with a dark edge, visible on any picture; `start` and `reach` in frame pixels."""
    length = hypot(*reach)
    if not length > 0:  # 0: still, NaN: free
        return
    along = np.array(reach) / length
    across = np.array((-along[1], along[0]))
    tip = np.array(start) + reach
    head = min(HEAD, length)
    for edge, colour in ((OUTLINE, "black"), (0.0, "white")):
        neck = tip - along * (head + edge)
        half = across * (SHAFT / 2 + edge)
        barb = across * (head + edge * (1 + SLANT)) / 2
        back = np.array(start) - along * edge
        point = tip + along * edge * SLANT
        outline = [back - half, neck - half, neck - barb, point, neck + barb, neck + half, back + half]
        draw.polygon([tuple(corner * SMOOTH) for corner in outline], fill=colour)


def scale_of(flow: np.ndarray) -> float:
    """The length to show in full colour; 0 if nothing moves. Free flow does not count.

    A percentile, because attention flow often has a few wild vectors, which would make all others look still.
    """
    lengths = np.hypot(flow[..., 0], flow[..., 1])
    moving = lengths[lengths > 0]
    return float(np.percentile(moving, SCALE_SHARE)) if moving.size else 0.0


def _legend(largest: float, font: ImageFont.FreeTypeFont, free: bool) -> Image.Image:
    lines = [
        "colour: direction from the query frame to the key frame",
        f"full colour at the rim: {largest:.3g} latent patches",
        "white: still; darker: longer",
        *(["grey with stripes: free, no motion is given"] if free else []),
    ]
    lines = [line.replace(" ", "  ") for line in lines]  # the font's own space is narrow
    left = WHEEL + 2 * EDGE
    width = left + ceil(max(font.getlength(line) for line in lines)) + EDGE
    legend = Image.new("RGB", (width, WHEEL + 2 * EDGE), PAPER)
    reach = (np.arange(WHEEL) + 0.5) / WHEEL * 2 - 1
    wheel = np.stack(np.meshgrid(reach, reach), axis=-1)
    inside = Image.fromarray(np.hypot(wheel[..., 0], wheel[..., 1]) <= 1)
    legend.paste(Image.fromarray(colour_wheel(wheel, 1.0)), (EDGE, EDGE), inside)
    draw = ImageDraw.Draw(legend)
    for index, line in enumerate(lines):
        middle = EDGE + WHEEL / 2 + (index - (len(lines) - 1) / 2) * LINE
        draw.text((left, middle), line, INK, font, anchor="lm")
    return legend
