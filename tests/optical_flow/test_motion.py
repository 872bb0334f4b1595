"""The motion of a video on cells, and its camera part."""

import numpy as np
import pytest
from moving_pictures import pan, texture, uniform, with_object

from ditflow.optical_flow.camera import camera_motion, similarity
from ditflow.optical_flow.motion import SPAN, Motion, measure_motion

GRID = 12, 18


@pytest.fixture(scope="module")
def video():
    """A pan to the lower right with a square that moves to the right."""
    return with_object(pan(1, 1, frames=10), 4, 0)


@pytest.fixture(scope="module")
def motion(video):
    return measure_motion(video, *GRID)


def test_a_step_is_as_long_as_a_latent_frame(motion):
    assert motion.forward.shape == motion.backward.shape == (6, *GRID, 2)
    assert np.abs(motion.forward[0, 2:-2, 13:-2] * 8 - SPAN).max() < 1  # one pixel a frame, cells of 8 pixels
    assert np.abs(motion.forward[0, 5:7, 7:9] * 8 - (4 * SPAN, 0)).mean() < 1
    assert motion.trust[0, 2:-2, 13:-2].min() > 0.9


def assert_close(found, expected):
    known = found.trust * expected.trust
    error = np.linalg.norm(found.forward - expected.forward, axis=-1) * known
    assert error.sum() / known.sum() < 0.03  # cells


def test_mirrored_and_reversed_are_those_of_the_changed_video(video, motion):
    assert_close(motion.mirrored(), measure_motion(np.ascontiguousarray(video[:, :, ::-1]), *GRID))
    assert_close(motion.reversed(), measure_motion(np.ascontiguousarray(video[::-1]), *GRID))
    again = motion.reversed().reversed()
    assert (again.forward == motion.forward).all() and (again.trust_backward == motion.trust_backward).all()


def test_shifted_starts_in_the_middle(motion):
    assert (motion.shifted().forward[0] == motion.forward[3]).all()
    assert (motion.shifted().forward[3] == motion.forward[0]).all()


def test_the_camera_is_told_from_the_object(motion):
    assert np.abs(motion.camera * 8 - SPAN).max() < 1
    assert np.abs(motion.objects[0, 5:7, 7:9] * 8 - (3 * SPAN, -SPAN)).mean() < 1
    assert np.abs(motion.objects[0, 2:-2, 13:-2] * 8).max() < 1


def test_zoom_and_rotation_are_the_cameras():
    y, x = np.mgrid[-1:1:30j, -1:1:45j]
    truth = np.stack([0.4 + 0.5 * x - 0.3 * y, -0.2 + 0.3 * x + 0.5 * y], axis=-1)[None]
    flow = truth + np.random.default_rng(0).normal(scale=0.02, size=truth.shape)
    flow[:, 8:20, 5:25] += (2, -3)  # an object over a sixth of the frame
    trust = np.ones(flow.shape[:3])
    assert np.abs(camera_motion(flow, trust) - truth).max() < 0.02
    trust[:, :, :10] = 0
    flow[:, :, :10] = 50  # unknown
    assert np.abs(camera_motion(flow, trust) - truth).max() < 0.05


@pytest.mark.parametrize("factor", [1, 1.5, 0.6, np.exp(0.4j), 1.2 * np.exp(-0.3j)], ids=str)
def test_a_similarity_is_that_of_most_points(factor):
    y, x = np.mgrid[:20, :30]
    places = (x - 14.5 + 1j * (y - 9.5)).ravel()
    flow = places * factor + (3 - 2j) - places
    flow[:180] = 5 - 4j  # an object over almost a third of the frame
    found = similarity(places, flow)
    assert np.abs(np.array(found) - (factor, 3 - 2j)).max() < 0.01


@pytest.mark.parametrize("frames, steps", [(1, 0), (2, 1), (5, 1), (6, 2)])
def test_short_videos(frames, steps):
    motion = measure_motion(pan(2, 0, frames=frames), *GRID)
    assert motion.forward.shape == (steps, *GRID, 2)
    if frames == 2:
        assert np.abs(motion.forward[0, 3:-3, 3:-3] * 8 - (2, 0)).max() < 0.25


def test_still_videos():
    picture = texture()
    noise = np.random.default_rng(0).normal(scale=3, size=(9, *picture.shape))
    noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
    assert measure_motion(np.stack([picture] * 9), *GRID).still
    assert measure_motion(noisy, *GRID).still
    assert not measure_motion(with_object(np.stack([picture] * 9), 1, 0), *GRID).still
    assert not uniform(0.1, 0).still and uniform(0.05, 0).still


def test_another_grid():
    motion = uniform(1, 2, rows=6, columns=8).on_grid(uniform(0, 0, rows=12, columns=4))
    assert motion.forward.shape == (4, 12, 4, 2) and motion.trust.shape == (4, 12, 4)
    assert np.allclose(motion.forward, (0.5, 4))
    same = uniform(1, 2)
    assert same.on_grid(uniform(0, 0)) is same


def test_cut(motion):
    assert isinstance(motion.cut(2), Motion) and len(motion.cut(2).trust) == 2
    assert (motion.cut(2).forward == motion.forward[:2]).all()
