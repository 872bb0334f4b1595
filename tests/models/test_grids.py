"""Every family says how many tokens a video has, without its transformer."""

import pytest

from ditflow.memory.fake_tensors import fake_tensors
from ditflow.planning.fake import FakeModel
from ditflow.settings import Settings


@pytest.mark.parametrize("model", ["small", "small-wan", "5b", "wan-1.3b", "wan-5b"])
def test_grid_is_the_transformers(model):
    with fake_tensors():
        found = FakeModel(Settings(model=model, frames=25))
        transformer = found.transformer()
        latents = found.inputs(transformer).latents
        assert found.grid() == transformer.grid(latents)
        assert found.grid().frames == latents.shape[1]
