"""The measure of the ground's motion, on grounds whose motion is known."""

import math

import numpy as np
import pytest

from bench.ground import ground_motion
from ditflow.small.clips import made_clip, shaded
from ditflow.small.scenes import panned, two_objects


def waved(moved, angle, length=24.0):
    """Waves in one direction, as models draw them, that have moved by `moved` [frames, 2]."""
    y, x = np.mgrid[:64, :96]
    along = [(x - right) * math.cos(angle) + (y - down) * math.sin(angle) for right, down in moved]
    shades = (1 + np.sin(2 * math.pi * np.stack(along) / length)) / 2
    return np.rint(shaded("blue", shades)).astype(np.uint8)


def path(x, y):
    return np.linspace(0, 1, 24)[:, None] * (x, y)


@pytest.mark.parametrize("seed", range(4))
def test_a_pan_is_followed_whatever_its_object_does(seed):
    scene = panned(seed)
    found = ground_motion(scene.frames, scene.ground)
    assert found.reach == pytest.approx(1, abs=0.06) and found.share > 0.4
    assert ground_motion(scene.frames, 2 * scene.ground).reach == pytest.approx(found.reach / 2)
    assert ground_motion(scene.frames, -scene.ground).reach == pytest.approx(-found.reach)


@pytest.mark.parametrize("seed", [2, 3, 4])  # with waves
def test_a_still_ground_does_not_follow(seed):
    found = ground_motion(two_objects(seed).frames, path(24, 12))
    assert abs(found.reach) < 0.05 and found.share > 0.4


def test_plain_ground_shows_no_motion():
    clip = made_clip(0)
    assert clip.scene.backdrop == "plain"
    assert ground_motion(clip.frames, path(24, 12)) == (0, 0)
    assert ground_motion(np.zeros((24, 64, 96, 3), np.uint8), path(24, 12)) == (0, 0)


def test_waves_show_motion_across_them_only():
    right, down = path(24, 0), path(0, 24)
    for angle in (0.05, 0.6, 1.0):
        assert ground_motion(waved(right, angle), right).reach == pytest.approx(1, abs=0.05)
    assert ground_motion(waved(right, 1.5), right) == (0, 0)
    assert ground_motion(waved(down, 1.5), right + down).reach == pytest.approx(1, abs=0.05)
    assert ground_motion(waved(right, 0.05), right + down).reach == pytest.approx(1, abs=0.1)


def test_noise_is_no_ground():
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3)).astype(np.uint8)
    found = ground_motion(frames, path(8, 4)[:9])
    assert np.isfinite(found).all()
