import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from ditflow.pictures.clip_flow import draw_flow
from ditflow.pictures.flow_pictures import EDGE, PAPER, WHEEL, arrows, colour_wheel, flow_sheet, scale_of
from ditflow.video import Clip

RED, WHITE = (255, 0, 0), (255, 255, 255)
LEGEND = WHEEL + 2 * EDGE  # pixels: its height


def uniform(x: float, y: float, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 2), (x, y), np.float32)


@pytest.mark.parametrize(
    ("direction", "strongest", "weakest"),
    [((1, 0), 0, 2), ((0, 1), 0, 2), ((-1, 0), 2, 0), ((0, -1), 2, 1)],
    ids=["right is red", "down is yellow", "left is cyan blue", "up is violet"],
)
def test_direction_is_hue(direction, strongest, weakest):
    colour = colour_wheel(uniform(*direction), 1.0)[0, 0]
    assert colour[strongest] == 255 and colour[weakest] == 0
    assert tuple(colour_wheel(uniform(3, 0), 3.0)[0, 0]) == RED


def test_length_is_saturation():
    lengths = [0.0, 0.5, 1.0, 2.0]
    colours = [colour_wheel(uniform(length, 0), 1.0)[0, 0].tolist() for length in lengths]
    assert colours == [[255, 255, 255], [255, 128, 128], [255, 0, 0], [191, 0, 0]]


def test_opposite_directions_look_different():
    turns = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    ring = np.stack((np.cos(turns), np.sin(turns)), axis=-1)[None]
    colours = colour_wheel(ring, 1.0)[0].astype(int)
    assert np.abs(colours - np.roll(colours, 36, axis=0)).sum(axis=-1).min() > 250
    assert np.abs(colours - np.roll(colours, 1, axis=0)).sum(axis=-1).max() < 100  # no seam


def test_still_flow_is_white_at_any_scale():
    assert (colour_wheel(uniform(0, 0), 0.0) == 255).all()
    assert (colour_wheel(uniform(0, 0), 5.0) == 255).all()


def panels(sheet: np.ndarray, colour: tuple[int, int, int], height: int, width: int) -> list[tuple[int, int]]:
    """Upper left corners of all pictures of this size and colour that have an edge all round."""
    found = (sheet == colour).all(axis=-1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(found, 1), (height + 2, width + 2))
    full = windows[..., 1:-1, 1:-1].all(axis=(2, 3))
    bare = ~windows[..., 0, :].any(axis=2) & ~windows[..., -1, :].any(axis=2)
    return [tuple(corner) for corner in np.argwhere(full & bare)]


def test_sheet_has_a_row_for_each_query_and_a_column_for_each_key():
    flow = np.zeros((3, 3, 4, 6, 2), np.float32)
    flow[0, 2], flow[2, 0] = (2, 0), (-2, 0)
    sheet = flow_sheet(flow, scale=10)
    (to_right,) = panels(sheet, RED, 40, 60)
    (to_left,) = panels(sheet, tuple(colour_wheel(uniform(-1, 0), 1.0)[0, 0]), 40, 60)
    still = panels(sheet, WHITE, 40, 60)
    assert len(still) == 7
    rows, columns = sorted({y for y, _ in still}), sorted({x for _, x in still})
    assert to_right == (rows[0], columns[2])
    assert to_left == (rows[2], columns[0])


def ink(picture: np.ndarray) -> np.ndarray:
    return (picture < 100).all(axis=-1)


def test_sheet_is_labelled():
    flow = np.zeros((2, 2, 8, 12, 2), np.float32)
    sheet = flow_sheet(flow, scale=8)
    corners = panels(sheet, WHITE, 64, 96)
    for y, x in corners[:2]:
        assert ink(sheet[:y, x : x + 96]).any()  # above each column
    for y, x in corners[::2]:
        assert ink(sheet[y : y + 64, :x]).any()  # before each row
    first, second = (ink(sheet[y : y + 64, : corners[0][1]]) for y, _ in corners[::2])
    assert (first != second).any()  # "query 0", "query 1"


def test_one_scale_for_the_sheet_is_written_on_it():
    flow = np.zeros((2, 2, 4, 6, 2), np.float32)
    flow[0, 1], flow[1, 0] = (1, 0), (4, 0)
    flow[1, 0, 0, :2] = (40, 0)  # a few wild vectors do not set it
    sheet = flow_sheet(flow, scale=8)
    assert (sheet == colour_wheel(uniform(0.25, 0), 1.0)[0, 0]).all(axis=-1).any()
    assert (sheet == colour_wheel(uniform(10, 0), 1.0)[0, 0]).all(axis=-1).any()

    below = sheet.shape[0] - LEGEND
    doubled = flow_sheet(flow * 2, scale=8)
    assert np.array_equal(doubled[:below], sheet[:below])  # the pictures are the same
    changed = np.argwhere((doubled[below:] != sheet[below:]).any(axis=-1))
    assert len(changed) and np.ptp(changed[:, 0]) < 16  # one line, with another scale
    assert ink(sheet[below:][changed[0][0]]).any()


def test_legend_wheel_shows_the_directions():
    sheet = flow_sheet(np.zeros((1, 1, 2, 3, 2), np.float32), scale=4)
    vivid = np.argwhere(np.ptp(sheet.astype(int), axis=-1) > 120)
    (top, left), (bottom, right) = vivid.min(axis=0), vivid.max(axis=0)
    assert abs((bottom - top) - (right - left)) <= 2
    middle_y, middle_x = (top + bottom) // 2, (left + right) // 2
    for (y, x), direction in {
        (middle_y, right - 1): (1, 0),
        (middle_y, left + 1): (-1, 0),
        (bottom - 1, middle_x): (0, 1),
        (top + 1, middle_x): (0, -1),
    }.items():
        expected = colour_wheel(uniform(*direction), 1.0)[0, 0].astype(int)
        assert np.abs(sheet[y, x].astype(int) - expected).max() < 40
    assert sheet[middle_y, middle_x].min() > 235


def test_sheet_of_tiny_pictures_keeps_its_labels_apart():
    sheet = flow_sheet(np.zeros((12, 12, 2, 2, 2), np.float32), scale=2)
    columns = sorted({x for _, x in panels(sheet, WHITE, 4, 4)})
    assert len(columns) == 12
    assert np.diff(columns).min() > 30  # "key 11" is wider than its picture


@pytest.mark.parametrize("shade", [0, 128, 255])
@pytest.mark.parametrize("reach", [(2, 0), (0, 2), (-2, 0), (0, -2), (1.5, 1.5)], ids=str)
def test_arrow_shows_from_the_middle_of_its_patch_to_where_the_flow_ends(shade, reach):
    frame = np.full((160, 160, 3), shade, np.uint8)
    flow = np.zeros((5, 5, 2), np.float32)  # patches of 32 pixels
    flow[2, 2] = reach
    drawn = arrows(frame, flow)
    changed = np.argwhere((drawn != frame).any(axis=-1))
    start, end = np.array((80, 80)), np.array((80 + 32 * reach[1], 80 + 32 * reach[0]))
    along = (end - start) / np.linalg.norm(end - start)
    distance = (changed + 0.5 - start) @ along
    aside = np.abs((changed + 0.5 - start) @ (-along[1], along[0]))
    assert -3 < distance.min() < 1
    assert np.linalg.norm(end - start) - 1 < distance.max() < np.linalg.norm(end - start) + 4
    assert aside.max() < 7
    assert aside[distance > distance.mean()].max() > 1.5 * aside[distance < distance.mean()].max()  # head
    middle = drawn[tuple(((start + end) / 2).astype(int))].astype(int)
    assert middle.min() > 200  # white, with a dark edge
    assert drawn[tuple(changed.T)].min() < 40


def test_still_patches_have_no_arrow_and_the_frame_shows():
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with np.errstate(all="raise"):
        assert np.array_equal(arrows(frame, np.zeros((4, 6, 2))), frame)


def starts(frame_size: int, patches: int) -> int:
    flow = np.zeros((patches, patches, 2), np.float32)
    flow[..., 0] = 6 * patches / frame_size  # 6 pixels
    drawn = arrows(np.zeros((frame_size, frame_size, 3), np.uint8), flow)
    row = drawn.max(axis=(0, 2)) > 0
    return int(np.count_nonzero(np.diff(row.astype(int)) == 1))


def test_one_arrow_a_patch_and_fewer_where_patches_are_dense():
    assert starts(240, 5) == 5
    assert starts(240, 10) == 10
    assert 3 <= starts(240, 40) <= 10


def partly_free():
    """Flow of two frames of which the left half is free, and the same flow without free cells."""
    flow = np.zeros((2, 2, 4, 6, 2), np.float32)
    flow[0, 1], flow[1, 0] = (2, 0), (-1, 1)
    free = flow.copy()
    free[:, :, :, :3] = np.nan
    return free, flow


@pytest.mark.filterwarnings("error")
def test_free_flow_is_grey_and_does_not_set_the_scale():
    free, flow = partly_free()
    with np.errstate(all="raise"):
        colours = colour_wheel(free[0, 1], 2.0)
        assert (scale_of(free), scale_of(np.full_like(free, np.nan))) == (2.0, 0.0)
    assert (colours[:, :3] == 150).all()
    assert np.array_equal(colours[:, 3:], colour_wheel(flow[0, 1], 2.0)[:, 3:])


@pytest.mark.filterwarnings("error")
def test_free_flow_has_stripes_in_a_sheet():
    free, flow = partly_free()
    given, sheet = flow_sheet(flow, scale=8), flow_sheet(free, scale=8)
    height = given.shape[0] - LEGEND
    changed = (sheet[:height] != given[:height, : sheet.shape[1]]).any(axis=-1)
    assert changed.sum() == 4 * (4 * 8) * (3 * 8)
    greys = np.unique(sheet[:height][changed], axis=0)
    assert greys.tolist() == [[150] * 3, [175] * 3]  # neither still, 255, nor paper, 225
    assert 0.2 < (sheet[:height][changed] == 175).mean() < 0.3


def test_the_legend_speaks_of_free_flow_only_if_there_is_any():
    free, flow = partly_free()
    given, sheet = flow_sheet(flow, scale=8), flow_sheet(free, scale=8)
    assert sheet.shape == given.shape
    legends = [ink(each[-LEGEND:]).any(axis=1) for each in (given, sheet)]
    lines = [np.count_nonzero(np.diff(rows.astype(int)) == 1) for rows in legends]
    assert lines == [3, 4]


@pytest.mark.parametrize("frames", [1, 6], ids=["narrower than its legend", "wider"])
def test_nothing_in_a_sheet_touches(frames):
    """Around the sheet, its wheel and its lines of text there is room."""
    sheet = flow_sheet(np.full((frames, frames, 4, 6, 2), np.nan, np.float32), scale=16)
    drawn = (sheet != PAPER).any(axis=-1)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert min(rows[0], columns[0]) >= EDGE - 2 and rows[-1] < sheet.shape[0] - EDGE
    assert columns[-1] < sheet.shape[1] - EDGE + 2
    legend = drawn[-LEGEND:]
    assert not legend[:EDGE].any()  # below the pictures
    assert not legend[:, EDGE + WHEEL : EDGE + WHEEL + EDGE - 1].any()  # between wheel and text
    text = legend[:, WHEEL + 2 * EDGE :].any(axis=1)
    starts, ends = (np.flatnonzero(np.diff(text.astype(int)) == step) for step in (1, -1))
    assert len(starts) == 4 and (starts[1:] - ends[:-1]).min() >= 6
    rows = slice(starts[0] + 1, ends[0] + 1)  # the first line: ten words
    gaps = np.diff(np.flatnonzero(legend[rows, WHEEL + 2 * EDGE :].any(axis=0))) - 1
    assert (gaps >= 4).sum() == 9


@pytest.mark.filterwarnings("error")
def test_free_patches_have_no_arrow():
    free, flow = partly_free()
    frame = np.full((128, 192, 3), 90, np.uint8)
    drawn, all_drawn = arrows(frame, free[0, 1]), arrows(frame, flow[0, 1])
    assert np.array_equal(drawn[:, :100], frame[:, :100])
    assert not np.array_equal(drawn, frame)
    assert not np.array_equal(all_drawn[:, :100], frame[:, :100])
    assert np.array_equal(arrows(frame, np.full_like(free[0, 1], np.nan)), frame)


@pytest.mark.filterwarnings("error")
def test_a_clip_with_free_flow_is_drawn():
    free, _ = partly_free()
    clip = Clip(np.full((8, 64, 96, 3), 90, np.uint8), Fraction(8))
    sheet, shown = draw_flow(clip, free, [range(4), range(4, 8)])
    assert (sheet == 175).all(axis=-1).any()
    assert (shown.frames[0, :, :190] == 90).all() and (shown.frames[0] != 90).any()


def test_needs_no_torch():
    program = "import sys, ditflow.pictures.flow_pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
