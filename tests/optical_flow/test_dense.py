"""Dense flow between frames: what it finds in videos whose motion is known."""

import sys

import numpy as np
import pytest
from moving_pictures import pan, with_object

from ditflow.errors import DitflowError
from ditflow.optical_flow.dense import CELL, cell_means, chain, flows, grid_of, resized, sample, trust

INSIDE = (slice(24, -24), slice(24, -24))  # pixels that a pan does not take out of the frame


def test_a_pan_is_found():
    forward, backward = zip(*flows(pan(3, -2), 12, 18), strict=True)
    assert np.shape(forward) == np.shape(backward) == (8, 96, 144, 2)
    assert np.abs(np.stack(forward)[:, *INSIDE] - (3, -2)).max() < 0.25
    assert np.abs(np.stack(backward)[:, *INSIDE] - (-3, 2)).max() < 0.25


def test_a_step_follows_content_further_than_dis_finds_at_once():
    """Eight pixels a frame: DIS between frames four apart loses the object, the chain does not."""
    video = with_object(pan(0, 0, frames=5), 8, 0)
    moved = chain(forward for forward, _ in flows(video, 12, 18))
    middle = (slice(42, 54), slice(58, 70))
    assert np.abs(moved[middle] - (32, 0)).mean() < 2
    ((at_once, _),) = flows(video[[0, 4]], 12, 18)
    assert np.abs(at_once[middle] - (32, 0)).mean() > 8


def test_chains_are_followed_pixel_by_pixel():
    steps = np.random.default_rng(0).integers(-2, 3, size=(3, 12, 16, 2)).astype(np.float32)
    moved = chain(steps)
    for y in range(12):
        for x in range(16):
            place = np.array((x, y))
            for step in steps:
                column, row = np.clip(place, 0, (15, 11))
                place = place + step[row, column].astype(int)  # beyond the frame its edge is repeated
            assert np.allclose(moved[y, x], place - (x, y))


def test_a_field_is_sampled_between_pixels():
    field = np.arange(12, dtype=np.float32).reshape(3, 4)
    moved = np.full((3, 4, 2), (0.5, 0), np.float32)
    assert np.allclose(sample(field, moved)[:, :3], field[:, :3] + 0.5)


def test_content_that_does_not_return_is_not_trusted():
    there = np.zeros((8, 16, 2), np.float32)
    there[:, 8:] = (4, 0)
    back = np.zeros_like(there)  # so the right half misses its start by 4 of 2.6 pixels that are allowed
    known = trust(there, back)
    assert (known[:, :8] == 1).all() and np.allclose(known[:, 8:], np.exp(-((4 / 2.6) ** 2)))


def test_a_cell_is_the_mean_of_its_pixels():
    field = np.random.default_rng(0).normal(size=(2, 2 * CELL, 3 * CELL, 2))
    found = cell_means(field)
    assert found.shape == (2, 2, 3, 2)
    assert np.allclose(found[1, 1, 2], field[1, CELL:, 2 * CELL :].mean(axis=(0, 1)))


@pytest.mark.parametrize(
    "size, grid",
    [
        ((480, 720), (30, 45)),
        ((720, 1280), (30, 53)),
        ((64, 96), (8, 12)),
        ((16, 200), (2, 25)),
        ((8, 8), (2, 2)),
    ],
)
def test_a_cell_is_about_a_token(size, grid):
    assert grid_of(*size) == grid
    rows, columns = grid
    frames = np.random.default_rng(0).integers(256, size=(3, *size, 3)).astype(np.uint8)
    found = list(flows(frames, rows, columns))
    assert np.shape(found) == (2, 2, rows * CELL, columns * CELL, 2)


def test_single_frames_have_no_flow():
    assert list(flows(pan(0, 0, frames=1), 12, 18)) == []


def test_fields_are_resized():
    assert resized(np.full((3, 4, 2), 7.0), 6, 5).shape == (6, 5, 2)


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DitflowError, match=r"pip install .ditflow\[eval\]"):
        next(flows(pan(0, 0), 12, 18))
