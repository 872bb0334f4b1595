"""Our forward through CogVideoX's layers equals that of diffusers."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXPipeline
from tiny_models import backbone_of, random_inputs, tiny_backbone, tiny_transformer

from ditflow.errors import DitflowError
from ditflow.memory.plain import PlainRunner
from ditflow.models.protocols import Grid, Inputs

SIZES = {"trained": (3, 8, 12), "square": (2, 8, 8), "tall": (5, 12, 6), "one-frame": (1, 4, 16)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_forward_equals_diffusers(backbone, size):
    inputs = random_inputs(backbone, *size)
    rope = tuple(inputs.embedding[0]) if backbone.rotary else None
    expected = backbone.network(inputs.latents, inputs.prompt, inputs.timestep, image_rotary_emb=rope).sample
    (found,) = PlainRunner(backbone).forward([inputs], {})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_rotary_embedding_equals_the_pipelines(size):
    model, (frames, height, width) = tiny_transformer(), size
    pipeline = SimpleNamespace(transformer=model, vae_scale_factor_spatial=8)
    cos, sin = CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, height * 8, width * 8, frames, torch.device("cpu")
    )
    embedding = backbone_of(model).embedding(Grid(frames, height // 2, width // 2))
    for one in embedding:  # queries, keys
        assert torch.equal(one[0], cos)
        assert torch.equal(one[1], sin)


@pytest.mark.parametrize("text_length", [1, 7, 10, 23])
def test_text_length_does_not_move_the_video_tokens(text_length):
    """The additive embedding belongs to the video tokens, however many text tokens precede them."""
    backbone = tiny_backbone(rotary=False)
    inputs = random_inputs(backbone, 3, 8, 12, text_length)
    (video, text), _ = backbone.embed(inputs)
    without = Inputs(inputs.latents, inputs.prompt, inputs.timestep, inputs.embedding * 0)
    (bare_video, bare_text), _ = backbone.embed(without)
    torch.testing.assert_close(video - bare_video, inputs.embedding, rtol=1e-4, atol=1e-5)
    assert torch.equal(text, bare_text)


def test_other_patch_embeddings_are_refused():
    with pytest.raises(DitflowError, match="CogVideoX 1.5"):
        tiny_backbone(patch_size_t=2)
