"""Optical flow of tokens against motion that is known: moved textures, and made clips."""

import sys

import cv2
import numpy as np
import pytest

from ditflow.errors import DitflowError
from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.optical_flow.tokens import token_flow
from ditflow.small.clips import made_clip
from ditflow.small.truth import true_flow

HEIGHT, WIDTH, ROWS, COLUMNS = 64, 96, 8, 12
SPANS = family_of("small").latent_spans(24)
GRID = Grid(6, ROWS, COLUMNS)


def texture(height, width, seed=0):
    """Smooth noise, uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pan():
    """Frames that show a texture, whose content moves by (2, 1) pixels to the left and up in each."""
    wide = texture(HEIGHT + 24, WIDTH + 48)
    return np.stack([wide[t : t + HEIGHT, 2 * t : 2 * t + WIDTH] for t in range(24)])


@pytest.fixture(scope="module")
def passing():
    """A textured square of 24 pixels that moves 2 to the right in each frame, over a textured background."""
    frames = np.stack([texture(HEIGHT, WIDTH)] * 24)
    for t, frame in enumerate(frames):
        frame[16:40, 8 + 2 * t : 32 + 2 * t] = texture(24, 24, seed=1)
    return frames


def test_a_pan_is_measured_where_its_content_stays_in_the_frame(pan):
    found = token_flow(pan, GRID, SPANS).reshape(6, 6, ROWS, COLUMNS, 2)
    for query in range(6):
        for key in range(6):
            expected = np.array([-2, -1]) * 4 * (key - query) / 8  # patches
            y, x = np.mgrid[:ROWS, :COLUMNS]
            to_x, to_y = x + expected[0], y + expected[1]
            stays = (to_x >= 0) & (to_x <= COLUMNS - 1) & (to_y >= 0) & (to_y <= ROWS - 1)
            leaves = (to_x < -1) | (to_x > COLUMNS) | (to_y < -1) | (to_y > ROWS)
            assert np.isnan(found[query, key][leaves]).all()
            known = stays & np.isfinite(found[query, key, ..., 0])
            assert known.sum() > 0.8 * stays.sum()
            assert np.abs(found[query, key][known] - expected).max() < 0.25


def test_an_object_moves_over_a_still_background(passing):
    found = token_flow(passing, GRID, SPANS).reshape(6, 6, ROWS, COLUMNS, 2)
    # frame 2 stands for the first latent frame: the square is at x = 12 ... 36 there, and 8 further in each
    assert np.abs(found[0, 3, 3, 2:4] - (3, 0)).max() < 0.4
    assert np.abs(found[3, 0, 3, 5:7] - (-3, 0)).max() < 0.4
    assert np.abs(found[:, :, 6:]).max() < 0.05


def test_content_that_is_gone_after_a_cut_is_unknown(passing):
    cut = np.concatenate([passing[:12], np.stack([texture(HEIGHT, WIDTH, seed=2)] * 12)])
    known = np.isfinite(token_flow(cut, GRID, SPANS)[..., 0])
    assert known[:3, :3].mean() > 0.9 and known[3:, 3:].all()
    assert known[:3, 3:].mean() < 0.15 and known[3:, :3].mean() < 0.15  # some looks alike by chance


def test_a_still_clip_is_known_to_be_still():
    noise = np.random.default_rng(0).normal(0, 1, (24, HEIGHT, WIDTH, 3))
    frames = np.clip(texture(HEIGHT, WIDTH) + noise, 0, 255).astype(np.uint8)
    found = token_flow(frames, GRID, SPANS)
    assert np.isfinite(found).all() and np.abs(found).max() == 0


def test_a_latent_frame_stands_for_its_middle_frame(pan):
    """Frames 0, 3 and 7 of 9, as an autoencoder encodes 8k + 1; then spans that reach beyond the clip."""
    spans = [range(1), range(1, 5), range(5, 9)]
    found = token_flow(pan[:9], (3, ROWS, COLUMNS), spans).reshape(3, 3, ROWS, COLUMNS, 2)
    for query, key, steps in ((0, 1, 3), (1, 2, 4), (2, 0, -7)):
        middle = found[query, key, 3:5, 4:8]
        assert np.abs(middle - np.array([-2, -1]) * steps / 8).max() < 0.1
    late = token_flow(pan[:6], (3, ROWS, COLUMNS), [range(4), range(4, 8), range(8, 12)])
    assert not late[1, 2].any() and not late[2, 1].any() and late[0, 2].any()  # both show the last frame


def test_made_clips_agree_with_their_true_motion():
    """On plain grounds, plain DIS drags the ground along with the shape."""
    seen, true, strays = [], [], []
    for seed in range(6):
        clip = made_clip(seed)
        found = token_flow(clip.frames, GRID, SPANS)
        truth, inside = true_flow(clip.centroids, clip.scene.radii, WIDTH, GRID, SPANS)
        known = np.isfinite(found[..., 0])
        mask = known & inside[:, None]
        seen.append(found[mask])
        true.append(truth[mask])
        painted = clip.frames.astype(int)
        ground = np.median(painted, axis=0)
        touched = (np.abs(painted - ground).max(-1) > 20).reshape(24, ROWS, 8, COLUMNS, 8).any(axis=(2, 4))
        away = ~touched[[span[2] for span in SPANS]].reshape(6, -1)
        strays.append(np.linalg.norm(found[known & away[:, None]], axis=-1) >= 0.5)
    seen, true = np.concatenate(seen), np.concatenate(true)
    assert np.corrcoef(seen.ravel(), true.ravel())[0, 1] > 0.97
    assert len(seen) > 500 and np.concatenate(strays).mean() < 0.02


def test_objects_may_differ_in_colour_alone():
    """A purple square over red: both have the same grey."""
    clip = made_clip(23)
    grey = cv2.cvtColor(clip.frames.reshape(-1, WIDTH, 3), cv2.COLOR_RGB2GRAY)
    assert np.ptp(grey) <= 3
    found = token_flow(clip.frames, GRID, SPANS)
    truth, inside = true_flow(clip.centroids, clip.scene.radii, WIDTH, GRID, SPANS)
    known = np.isfinite(found[..., 0]) & inside[:, None]
    assert known.sum() > 0.5 * 6 * inside.sum()
    assert np.corrcoef(found[known].ravel(), truth[known].ravel())[0, 1] > 0.97


def test_opencv_is_asked_for(pan, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DitflowError, match=r"pip install .ditflow\[eval\]"):
        token_flow(pan, GRID, SPANS)
