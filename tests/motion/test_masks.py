"""Masks as cells of latent frames, and cells that move against the camera."""

import numpy as np
import pytest
import torch

from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.motion.camera import camera_flow
from ditflow.motion.masks import moving_mask, token_mask
from ditflow.optical_flow.following import follow
from ditflow.optical_flow.tokens import token_flow
from ditflow.small.clips import made_clip
from ditflow.small.truth import true_flow
from ditflow.small.vocabulary import COLOURS

GRID, SPANS = Grid(3, 2, 4), [range(1), range(1, 5), range(5, 9)]


def video_mask(*boxes, frames=9):
    """True in boxes (first and last frame, top, bottom, left, right); frames of 16 x 32, cells of 8 x 8."""
    mask = np.zeros((frames, 16, 32), bool)
    for first, last, top, bottom, left, right in boxes:
        mask[first : last + 1, top:bottom, left:right] = True
    return mask


def cells(mask, grid=GRID, spans=SPANS):
    found = token_mask(mask, grid, spans)
    assert found.dtype == torch.bool and found.shape == (grid.frames, grid.height * grid.width)
    return [frame.nonzero().flatten().tolist() for frame in found]


def test_cells_that_are_covered_at_least_half_count():
    assert cells(video_mask((0, 8, 0, 8, 0, 12))) == [[0, 1]] * 3  # the second one by exactly half
    assert cells(video_mask((0, 8, 0, 8, 0, 11))) == [[0]] * 3
    assert cells(video_mask((0, 8, 4, 16, 24, 32))) == [[3, 7]] * 3


def test_a_latent_frame_is_the_mean_of_its_video_frames():
    whole = 0, 8, 0, 8  # the first cell
    assert cells(video_mask((0, 8, *whole), (3, 8, 8, 16, 8, 16))) == [
        [0],
        [0, 5],
        [0, 5],
    ]  # in 2 of 4 frames
    assert cells(video_mask((0, 8, *whole), (4, 8, 8, 16, 8, 16))) == [[0], [0], [0, 5]]  # in 1 of 4


def test_a_mask_that_covers_no_cell_half_has_one():
    assert cells(video_mask((0, 8, 6, 9, 13, 15))) == [[1], [1], [1]]
    assert cells(video_mask((4, 4, 0, 8, 0, 4), (4, 4, 0, 8, 8, 10))) == [[], [0], []]


def test_empty_and_full():
    assert cells(video_mask()) == [[], [], []]
    assert cells(video_mask((0, 8, 0, 16, 0, 32))) == [list(range(8))] * 3


def test_beyond_the_end_the_last_frame_is_repeated():
    late = [range(4), range(4, 8)]
    grid = Grid(2, 2, 4)
    assert cells(video_mask((5, 5, 0, 8, 0, 8), frames=6), grid, late) == [[], [0]]  # frames 4, 5, 5, 5
    assert cells(video_mask((0, 0, 0, 8, 0, 8), frames=1), grid, late) == [[0], [0]]


@pytest.mark.parametrize("seed", [0, 5, 9])
def test_one_image_followed_through_a_clip(seed):
    clip, grid, spans = made_clip(seed), Grid(6, 8, 12), family_of("small").latent_spans(24)
    shape = np.abs(clip.frames.astype(int) - COLOURS[clip.scene.colour]).max(axis=-1) < 20
    found = token_mask(follow(shape[0], clip.frames, grid.height, grid.width), grid, spans)
    assert (found == token_mask(shape, grid, spans)).float().mean() > 0.97


def uniform(grid, across, down=0.0):
    """All content moves so far in each latent frame."""
    frames = np.arange(grid.frames)
    steps = (frames[None] - frames[:, None])[..., None, None]
    return np.broadcast_to(
        steps * (across, down), (grid.frames, grid.frames, grid.height * grid.width, 2)
    ).copy()


MOVING = Grid(4, 5, 6)
CAMERA = uniform(MOVING, 0.5, -0.3)


def test_what_moves_against_the_camera():
    flow = CAMERA.copy()
    flow[:, :, [8, 9, 14, 15]] = uniform(MOVING, -0.5)[:, :, [8, 9, 14, 15]]
    found = moving_mask(flow, CAMERA, MOVING)
    assert found.shape == (4, 30) and found.dtype == torch.bool
    assert all(frame.nonzero().flatten().tolist() == [8, 9, 14, 15] for frame in found)


def test_nothing_moves():
    assert not moving_mask(CAMERA, CAMERA, MOVING).any()
    assert not moving_mask(np.full_like(CAMERA, np.nan), CAMERA, MOVING).any()
    assert not moving_mask(CAMERA[:1, :1], CAMERA[:1, :1], MOVING._replace(frames=1)).any()


def test_ground_that_is_dragged_along_to_one_side_does_not_count():
    flow = CAMERA.copy()
    flow[:, :, 8] += uniform(MOVING, 1.0)[:, :, 8]
    for frame in range(1, 3):
        flow[frame, frame + 1, 9] += 1  # about to be covered
        flow[frame, frame - 1, 7] -= 1  # left just now
    found = moving_mask(flow, CAMERA, MOVING)
    assert all(frame.nonzero().flatten().tolist() == [8] for frame in found[1:3])


def test_a_smooth_inside_counts():
    flow, ring = CAMERA.copy(), [7, 8, 9, 13, 15, 19, 20, 21]
    flow[:, :, ring] += uniform(MOVING, 1.0)[:, :, ring]
    flow[:, :, 14] = np.nan
    found = moving_mask(flow, CAMERA, MOVING)
    assert all(frame.nonzero().flatten().tolist() == sorted([*ring, 14]) for frame in found)


def test_slow_objects_are_seen_over_more_frames():
    grid = Grid(6, 5, 6)
    flow = np.zeros((6, 6, 30, 2))
    flow[:, :, 8] = uniform(grid, 0.13)[:, :, 8]
    assert moving_mask(flow, np.zeros_like(flow), grid)[:, 8].all()


@pytest.mark.parametrize("seed", [0, 8, 14, 21])
def test_made_clips(seed):
    """Of the cells in the shape all but a few are found, and of those far from it nearly none."""
    clip, grid, spans = made_clip(seed), Grid(6, 8, 12), family_of("small").latent_spans(24)
    flow = token_flow(clip.frames, grid, spans)
    found = moving_mask(flow, camera_flow(flow, grid), grid).numpy()
    _, inside = true_flow(clip.centroids, clip.scene.radii, 96, grid, spans)
    _, near = true_flow(clip.centroids, clip.scene.radii + 14, 96, grid, spans)
    assert found[inside].mean() > 0.85 and found[~near].mean() < 0.03
