"""The automatic mask of a clip in which nothing, or everything, moves against the camera."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ditflow.errors import SettingsError
from ditflow.models.protocols import Grid
from ditflow.motion import choose
from ditflow.settings import Settings
from ditflow.video import Clip

GRID, SPANS = Grid(2, 4, 6), [range(4), range(4, 8)]


@pytest.mark.parametrize("moves, invert", [(False, False), (True, True)])
def test_a_mask_in_which_nothing_counts_is_refused(monkeypatch, moves, invert):
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    clip = Clip(np.stack([noise] * 8), Fraction(8))
    settings = Settings(model="small", video="clip.mp4", mask="auto", mask_invert=invert)
    moving = torch.full((2, 24), moves)
    monkeypatch.setattr(choose, "moving_mask", lambda *given: moving)
    with pytest.raises(SettingsError, match="give --mask FILE"):
        choose.choose_motion(settings, clip, None, GRID, SPANS)
    moving.logical_not_()
    chosen = choose.choose_motion(settings, clip, None, GRID, SPANS)
    assert chosen.counted.all()
