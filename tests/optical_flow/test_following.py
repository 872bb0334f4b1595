"""A part of the first frame, followed through videos in which its place is known."""

import sys

import numpy as np
import pytest
from moving_pictures import pan, texture, with_object

from ditflow.errors import DitflowError
from ditflow.optical_flow.following import follow
from ditflow.small.clips import made_clip
from ditflow.small.vocabulary import COLOURS

GRID = 12, 18


def squares(x, y, frames):
    """Where `with_object` draws its square."""
    places = np.zeros((frames, 96, 144), bool)
    for frame, place in enumerate(places):
        place[32 + frame * y : 64 + frame * y, max(48 + frame * x, 0) : 80 + frame * x] = True
    return places


def overlap(found, true):
    return (found & true).sum() / (found | true).sum()


@pytest.mark.parametrize("x, y, camera", [(2, 1, (-2, 0)), (-1, 1, (0, 0)), (4, 0, (1, 1))])
def test_an_object_over_a_ground_that_moves_too(x, y, camera):
    video, places = with_object(pan(*camera, frames=9), x, y), squares(x, y, 9)
    found = follow(places[0], video, *GRID)
    assert found.shape == (9, 96, 144) and found.dtype == bool
    for frame in range(9):
        assert overlap(found[frame], places[frame]) > 0.85


def test_the_mask_may_have_another_size_than_the_cells():
    video, places = with_object(pan(1, 0, frames=4), 3, 0), squares(3, 0, 4)
    found = follow(places[0], video, 6, 9)
    assert overlap(found[3], places[3, 1::2, 1::2]) > 0.85


def test_a_part_that_leaves_is_gone():
    video, places = with_object(pan(0, 0, frames=25, width=240), 4, 0), squares(4, 0, 25)
    found = follow(places[0], np.ascontiguousarray(video[:, :, :144]), *GRID)
    assert overlap(found[12], places[12]) > 0.8
    assert not places[24].any() and not found[24, :, :-16].any()  # near the side, flow is poor


def test_all_and_nothing():
    video = np.stack([texture()] * 3)
    assert follow(np.ones((96, 144), bool), video, *GRID).all()
    assert not follow(np.zeros((96, 144), bool), video, *GRID).any()


def test_shapes_of_made_clips():
    """Plain shapes on plain grounds, where plain flow drags the ground along."""
    overlaps = []
    for seed in range(8):
        clip = made_clip(seed)
        inside = [_shape(clip, frame) for frame in (0, 12, 23)]
        found = follow(inside[0], clip.frames, 8, 12)
        overlaps.append([overlap(found[12], inside[1]), overlap(found[23], inside[2])])
    assert np.mean(overlaps) > 0.9 and np.min(overlaps) > 0.6


def _shape(clip, frame):
    """The pixels of a made clip's shape, by its colour."""
    return np.abs(clip.frames[frame].astype(int) - COLOURS[clip.scene.colour]).max(axis=-1) < 20


def test_opencv_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DitflowError, match=r"pip install .ditflow\[eval\]"):
        follow(np.ones((96, 144), bool), pan(1, 0, frames=2), *GRID)
