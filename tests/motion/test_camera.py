"""The camera's motion in a clip against videos that are shown by a known camera."""

import cv2
import numpy as np
import pytest
import torch
from einops import rearrange

from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.motion.camera import camera_flow, camera_target
from ditflow.optical_flow.tokens import token_flow

GRID, SPANS = Grid(6, 12, 18), family_of("small").latent_spans(24)
HEIGHT, WIDTH = 96, 144
CAMERAS = {  # factor of zoom and degrees after 24 frames, pixels a frame
    "pan": (1.0, 0, (2, -0.5)),
    "zoom": (1.4, 0, (0, 0)),
    "rotation": (1.0, 20, (0, 0)),
    "all": (0.8, -10, (-1, 0.5)),
}


def plane(seed):
    """A large textured picture."""
    noise = np.random.default_rng(seed).normal(size=(512, 512)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.repeat(
        np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)[..., None], 3, axis=-1
    )


def placed(camera):
    """In each frame, the factor and offset that bring the plane's places (complex) to those of the frame."""
    zoom, degrees, (x, y) = camera
    share = np.arange(24) / 23
    return zoom**share * np.exp(1j * np.deg2rad(degrees) * share), complex(x, y) * np.arange(24)


def filmed(camera, moving=None):
    """The frames that a camera shows, with a textured square of 24 pixels that moves so far in each."""
    frames = []
    for frame, (factor, offset) in enumerate(zip(*placed(camera), strict=True)):
        corner = complex(WIDTH - 1, HEIGHT - 1) / 2 + offset - factor * complex(511, 511) / 2
        matrix = np.float32(
            [[factor.real, -factor.imag, corner.real], [factor.imag, factor.real, corner.imag]]
        )
        picture = cv2.warpAffine(plane(0), matrix, (WIDTH, HEIGHT))
        if moving:
            left, top = 30 + moving[0] * frame, 24 + moving[1] * frame
            picture[top : top + 24, left : left + 24] = plane(1)[:24, :24]
        frames.append(picture)
    return np.stack(frames)


def truth(camera):
    """The displacement of the camera's content between the middle frames of all latent frames, in patches."""
    y, x = np.mgrid[:12, :18]
    places = (x - 8.5 + 1j * (y - 5.5)).ravel() * 8
    factor, offset = (each[[span[2] for span in SPANS], None] for each in placed(camera))
    world = (places - offset) / factor
    moved = rearrange(factor, "k 1 -> 1 k 1") * world[:, None] + offset - places
    return np.stack([moved.real, moved.imag], axis=-1) / 8


@pytest.mark.parametrize("moving", [None, (3, 1)], ids=["alone", "with_an_object"])
@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_the_cameras_motion_is_measured(camera, moving):
    flow = token_flow(filmed(camera, moving), GRID, SPANS)
    found = camera_flow(flow, GRID)
    assert found.shape == (6, 6, 216, 2)
    error = np.linalg.norm(found - truth(camera), axis=-1)
    assert error.max() < 0.4 and error.mean() < 0.12  # patches, over up to 20 video frames
    assert np.linalg.norm(truth(camera), axis=-1).max() > 2


def test_the_target_is_given_wherever_the_content_stays_in_the_frame():
    flow = token_flow(filmed(CAMERAS["pan"], (3, 1)), GRID, SPANS)
    target = camera_target(flow, GRID)
    reached = truth(CAMERAS["pan"]) + np.stack(np.mgrid[:12, :18][::-1], axis=-1).reshape(-1, 2)
    stays = ((reached > -0.3) & (reached < (17.3, 11.3))).all(axis=-1)
    leaves = ((reached < -0.7) | (reached > (17.7, 11.7))).any(axis=-1)
    given = ~target.isnan().any(dim=-1).numpy()
    assert target.dtype == torch.float32 and given[stays].all() and not given[leaves].any()
    assert stays.any() and leaves.any()


def exact(frames):
    """The flow of a pan, exactly, some of it unknown."""
    steps = np.subtract.outer(np.arange(frames), np.arange(frames)).T[..., None, None]
    flow = np.broadcast_to(steps * (0.5, 0.25), (frames, frames, 216, 2)).copy()
    flow[:, :, np.random.default_rng(0).random(216) < 0.6] = np.nan
    return flow


def test_unknown_cells_get_the_cameras_motion_too():
    found = camera_flow(exact(4), GRID._replace(frames=4))
    np.testing.assert_allclose(found[0, 3], np.broadcast_to((1.5, 0.75), (216, 2)), atol=1e-6)
    assert not found[2, 2].any()


def test_nothing_is_known_across_a_cut():
    flow = exact(4)
    flow[:2, 2:] = flow[2:, :2] = np.nan
    found = camera_flow(flow, GRID._replace(frames=4))
    assert np.isnan(found[:2, 2:]).all() and np.isnan(found[2:, :2]).all()
    assert np.isfinite(found[:2, :2]).all() and np.isfinite(found[2:, 2:]).all()


def test_too_little_is_known():
    flow = np.full((2, 2, 20, 2), np.nan)
    flow[:, :, :4] = 0
    assert np.isfinite(camera_flow(flow, Grid(2, 4, 5))).all()
    flow[:, :, 3] = np.nan
    assert np.isnan(camera_flow(flow, Grid(2, 4, 5))[0, 1]).all()


def test_one_frame():
    assert not camera_flow(np.zeros((1, 1, 216, 2), np.float32), GRID._replace(frames=1)).any()
