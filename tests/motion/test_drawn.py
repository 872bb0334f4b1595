"""Targets of drawn motion against a computation cell by cell, and what is said of surprising drawings."""

import math

import numpy as np
import pytest
import torch
from drawings import STILL, camera, figure

from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.motion.drawing import Drawing
from ditflow.motion.drawn import drawn_target, latent_times, remarks

GRID = Grid(4, 6, 10)
TIMES = np.array([0, 0.3, 0.5, 1])

MOVING = camera((0, 0, 0, 1, 0), (0.5, 0.2, -0.1, 1.5, 20), (1, 0.1, 0.3, 0.8, -40))
BOX = figure("box", (0, 0.2, 0.3, 0.3, 0.4), (1, 0.8, 0.6, 0.6, 0.3))
ELLIPSE = figure("ellipse", (0.2, 0.7, 0.4, 0.5, 0.6), (0.6, 0.3, 0.5, 0.3, 0.4))
LEAVING = figure("box", (0, 0.5, 0.5, 0.4, 0.5), (1, 1.1, 0.2, 0.4, 0.5))
TINY = figure("ellipse", (0, 0.33, 0.52, 0.01, 0.01), (1, 0.71, 0.24, 0.3, 0.02))
DRAWINGS = {
    "still_camera": Drawing(STILL, ()),
    "moving_camera": Drawing(MOVING, ()),
    "box_alone": Drawing(None, (BOX,)),
    "ellipse_over_still_ground": Drawing(STILL, (ELLIPSE,)),
    "two_objects_over_a_moving_camera": Drawing(MOVING, (BOX, ELLIPSE)),
    "the_other_way_round": Drawing(MOVING, (ELLIPSE, BOX)),
    "leaves": Drawing(None, (LEAVING,)),
    "tiny": Drawing(STILL, (TINY,)),
}


def value(times, values, time):
    """Linear between points, constant outside them."""
    if time <= times[0]:
        return values[0]
    for first, second, before, after in zip(times, times[1:], values, values[1:], strict=False):
        if time <= second:
            share = (time - first) / (second - first)
            return (1 - share) * before + share * after
    return values[-1]


def seen(x, y, camera, query, key):
    """Where what the camera shows at (x, y) patches at one time is at another one, by rotation matrices."""
    places = []
    for time in (query, key):
        pan, (zoom,), (degrees,) = (value(camera.times, each, time) for each in camera_values(camera))
        angle = math.radians(degrees)
        turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        places.append((pan * (10, 6), zoom, turned))
    (pan, zoom, turned), (pan_key, zoom_key, turned_key) = places
    world = turned @ (np.array([x, y]) - (5, 3)) / zoom + pan
    return turned_key.T @ (world - pan_key) * zoom_key + (5, 3)


def camera_values(camera):
    return camera.pan, camera.zoom, camera.rotate


def extent(figure, time):
    """Centre and half size in patches."""
    center, size = value(figure.times, figure.center, time), value(figure.times, figure.size, time)
    return center * (10, 6), size * (10, 6) / 2


def over(figure, x, y, time):
    (cx, cy), (half_x, half_y) = extent(figure, time)
    across, down = (x - cx) / half_x, (y - cy) / half_y
    return across**2 + down**2 <= 1 if figure.shape == "ellipse" else max(abs(across), abs(down)) <= 1


def shown(drawing, x, y, time):
    """The number of the object at a cell's middle, -1 for the camera's ground."""
    found = -1
    for number, each in enumerate(drawing.figures):
        empty = not any(over(each, c + 0.5, r + 0.5, time) for r in range(6) for c in range(10))
        center = extent(each, time)[0]
        if over(each, x, y, time) or (empty and max(abs(x - center[0]), abs(y - center[1])) <= 0.5):
            found = number
    return found


def wanted(drawing, x, y, query, key):
    """Displacement of the content of the cell with its middle at (x, y), or None if it is free."""
    number = shown(drawing, x, y, query)
    if number < 0 and drawing.camera is None:
        return None
    if number < 0:
        to_x, to_y = seen(x, y, drawing.camera, query, key)
    else:
        (center, half), (center_key, half_key) = (
            extent(drawing.figures[number], time) for time in (query, key)
        )
        part = np.clip((np.array([x, y]) - center) / half, -1, 1)
        to_x, to_y = np.array([x, y]) + center_key + part * half_key - center - part * half
    if not (0 <= to_x <= 10 and 0 <= to_y <= 6):
        return None
    if any(over(figure, to_x, to_y, key) for figure in drawing.figures[number + 1 :]):
        return None
    return to_x - x, to_y - y


@pytest.mark.parametrize("drawing", DRAWINGS.values(), ids=DRAWINGS)
def test_every_cell_goes_where_its_content_goes(drawing):
    target = drawn_target(drawing, GRID, TIMES)
    assert target.shape == (4, 4, 60, 2) and target.dtype == torch.float32
    expected = np.full((4, 4, 6, 10, 2), np.nan)
    for query, key, row, column in np.ndindex(4, 4, 6, 10):
        found = wanted(drawing, column + 0.5, row + 0.5, TIMES[query], TIMES[key])
        if found is not None:
            expected[query, key, row, column] = found
    expected = expected.reshape(4, 4, 60, 2)
    np.testing.assert_allclose(target.numpy(), expected, atol=1e-5)
    assert np.isfinite(expected).any()


def test_a_camera_that_pans_to_the_right_moves_the_content_to_the_left():
    target = drawn_target(Drawing(camera((0, 0, 0, 1, 0), (1, 0.2, 0, 1, 0)), ()), GRID, TIMES)
    first_to_last = target[0, 3].view(6, 10, 2)
    assert first_to_last[:, 2:].eq(torch.tensor([-2.0, 0.0])).all()
    assert first_to_last[:, :2].isnan().all()  # this content leaves the frame


def test_a_camera_that_turns_clockwise_turns_the_content_the_other_way():
    target = drawn_target(Drawing(camera((0, 0, 0, 1, 0), (1, 0, 0, 1, 90)), ()), GRID, TIMES)
    right_of_the_middle = target[0, 3].view(6, 10, 2)[2, 6]  # 1.5 to the right of the middle, 0.5 above it
    torch.testing.assert_close(right_of_the_middle, torch.tensor([-0.5 - 1.5, -1.5 + 0.5]))


def test_zoom_enlarges_around_the_middle():
    target = drawn_target(Drawing(camera((0, 0, 0, 1, 0), (1, 0, 0, 2, 0)), ()), GRID, TIMES)
    torch.testing.assert_close(target[0, 3].view(6, 10, 2)[2, 6], torch.tensor([1.5, -0.5]))
    assert target[0, 3].view(6, 10, 2)[0, 0].isnan().all()


def test_an_object_without_camera_leaves_the_rest_free():
    target = drawn_target(Drawing(None, (figure("box", (0, 0.25, 0.5, 0.3, 0.4)),)), GRID, TIMES)
    given = ~target.isnan().any(dim=-1).view(4, 4, 6, 10)
    assert given[:, :, 2:4, 1:4].all() and given.sum() == 16 * given[0, 0].sum()
    assert given[0, 0].nonzero().tolist() == [[row, column] for row in range(2, 4) for column in range(1, 4)]
    assert not target[given.flatten(2)].any()


def test_an_object_hides_what_it_covers():
    """A still ground, and a box that goes from the left half to the right half."""
    moving = figure("box", (0, 0.25, 0.5, 0.5, 1), (1, 0.75, 0.5, 0.5, 1))
    target = drawn_target(Drawing(STILL, (moving,)), GRID, TIMES).view(4, 4, 6, 10, 2)
    assert target[0, 3, :, :5].eq(torch.tensor([5.0, 0.0])).all()
    assert target[0, 3, :, 5:].isnan().all()
    assert not target[0, 0].any()


@pytest.mark.parametrize(
    "model, frames, expected",
    [
        ("small", 24, [1.5, 5.5, 9.5, 13.5, 17.5, 21.5]),
        ("small", 9, [0, 2.5, 6.5]),
        ("small", 14, [0.5, 3.5, 7.5, 11.5]),
        ("small", 10, [0, 2.5, 6.5, 9]),  # the last frame again
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 9, [0, 2.5, 6.5]),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 8, [0, 2.5, 6.25]),  # 5, 6, 7 and 7 again
    ],
)
def test_the_time_of_a_latent_frame_is_the_mean_of_its_video_frames(model, frames, expected):
    times = latent_times(frames, family_of(model).latent_spans(frames))
    assert times == pytest.approx(np.array(expected) / (frames - 1))


def test_one_frame_is_the_start():
    assert latent_times(1, [range(1)]) == [0]


def test_remarks():
    absent = figure("box", (0, -0.5, 0.5, 0.4, 0.4))
    touching = figure("box", (0, 0.5, 0.5, 1, 1))  # fills the frame and does not leave it
    drawing = Drawing(None, (ELLIPSE, LEAVING, TINY, absent, touching))
    assert remarks(drawing, GRID, TIMES) == [
        "object 2 leaves the frame at time 1.00: what is outside is free",
        "object 3 is smaller than a token, 0.100 x 0.167 of the frame, at time 0.00: it moves the tokens "
        "whose middle it covers, at least one",
        "object 4 is never in the frame: nothing is asked of it",
    ]
    assert drawn_target(Drawing(None, (absent,)), GRID, TIMES).isnan().all()
