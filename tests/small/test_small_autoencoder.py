"""The training data and the loss of the small models' autoencoder."""

import pytest
import torch

from ditflow.small.clips import made_clip
from ditflow.small.training import autoencoder


def differs(decoded, pixels):
    return autoencoder.difference(decoded, pixels, autoencoder._frame_weights(pixels))


def test_crops_are_parts_of_the_clip_around_its_shape(monkeypatch):
    monkeypatch.setattr(autoencoder, "BATCHES", ((6, 8, 48, 48),))
    monkeypatch.setattr(autoencoder, "TRAINING_SEEDS", range(10_000, 10_001))
    whole = autoencoder.to_pixels(torch.from_numpy(made_clip(10_000).frames)[None])
    pieces = autoencoder.to_pixels(autoencoder._draw(0))
    assert pieces.shape == (6, 3, 8, 48, 48)
    windows = whole[0].unfold(1, 8, 1).unfold(2, 48, 1).unfold(3, 48, 1)  # [3, t, y, x, 8, 48, 48]
    for piece in pieces:
        few = piece[:, None, None, None, :, ::12, ::12]  # find candidate places with few pixels
        places = (windows[..., ::12, ::12] == few).all(dim=-1).all(dim=-1).all(dim=-1).all(dim=0).nonzero()
        assert any(torch.equal(windows[:, t, y, x], piece) for t, y, x in places)
        moving = piece.amax(dim=1) - piece.amin(dim=1) > autoencoder.MOVES
        assert moving.any()


def test_errors_count_more_where_something_moves():
    """The same error in a blinking pixel and in a still one."""
    pixels = torch.zeros(1, 3, 4, 8, 8)
    pixels[..., 2, 3, 3] = 1.0
    there, elsewhere = (torch.zeros_like(pixels) for _ in range(2))
    there[..., 3, 3], elsewhere[..., 6, 6] = 0.5, 0.5
    ratio = differs(pixels + there, pixels) / differs(pixels + elsewhere, pixels)
    assert ratio == pytest.approx(1 + autoencoder.MOVING_WEIGHT)


def test_errors_count_most_in_the_last_frame_of_a_latent_frame(monkeypatch):
    """They count least in the first latent frame, whose frames come out alike."""
    for weight in ("EDGE_WEIGHT", "ACCELERATION_WEIGHT"):  # these depend on neighbours in time
        monkeypatch.setattr(autoencoder, weight, 0.0)
    pixels = torch.zeros(1, 3, 8, 4, 4)

    def counted(frame: int) -> float:
        error = torch.zeros_like(pixels)
        error[:, :, frame] = 1e-6  # its square is negligible
        return float(differs(pixels + error, pixels)) / 1e-6 * 8

    assert [counted(frame) for frame in range(8)] == pytest.approx(4 * [0.25] + 3 * [1.0] + [4.0], rel=1e-4)


def test_an_error_that_jitters_counts_more_than_a_steady_one():
    pixels, frames = torch.zeros(1, 3, 8, 4, 4), torch.arange(8.0)[:, None, None]
    even = 1e-3 * frames
    jittering = even + 1e-3 * (frames % 2 - 0.5)
    excess = differs(pixels + jittering, pixels) - differs(pixels + even, pixels)
    weights = torch.tensor(autoencoder.FIRST_WEIGHTS + autoencoder.LATER_WEIGHTS)
    assert excess > 0.9 * autoencoder.ACCELERATION_WEIGHT * 2e-3 * weights[2:].mean()
