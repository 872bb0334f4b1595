"""Models of the real size, on fake tensors: the shapes they have, and that the real code runs on them."""

import copy

import pytest
import torch

from ditflow.memory.streamed import Streamed
from ditflow.memory.tracker import Tracker
from ditflow.models.cogvideox.text import blocks, encode_tokens
from ditflow.models.cogvideox.vae import decode
from ditflow.models.loading import ModelFolder
from ditflow.planning.fake import (
    fake_backbone,
    fake_inputs,
    fake_pixels,
    fake_tensors,
    fake_text_encoder,
    fake_vae,
)
from ditflow.settings import Settings
from ditflow.settings.settings import shipped

GIB = 1 << 30
CPU = torch.device("cpu")
SMALLEST = 3.4 * GIB  # what a 4 GB card has left


def sizes(module):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_fakes_of_a_folder_are_what_it_loads(small_folder, dtype):
    settings = Settings(model=str(small_folder), dtype=dtype)
    folder = ModelFolder(str(small_folder), dtype, CPU)
    with fake_tensors():
        encoder, vae, backbone = fake_text_encoder(settings), fake_vae(settings), fake_backbone(settings)
        inputs = fake_inputs(settings, backbone)
    assert sizes(encoder) == sizes(folder.text_encoder())
    assert sizes(vae) == sizes(folder.vae())
    assert sizes(backbone.transformer) == sizes(folder.backbone().transformer)
    assert vae.config.scaling_factor == folder.vae().config.scaling_factor
    assert inputs.latents.shape == (1, 6, 8, settings.size.height // 4, settings.size.width // 4)


@pytest.mark.parametrize("model, transformer, scale", [("5b", 5.570e9, 0.7), ("2b", 1.694e9, 1.15258426)])
def test_fakes_of_the_real_models(model, transformer, scale):
    settings, before = Settings(model=model), copy.deepcopy(shipped(f"models/{model}.yaml"))
    with fake_tensors():
        encoder, vae, backbone = fake_text_encoder(settings), fake_vae(settings), fake_backbone(settings)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(encoder) == 4_762_310_656
    assert count(vae) == 215_583_907
    assert count(backbone.transformer) == pytest.approx(transformer, rel=1e-3)
    assert vae.config.scaling_factor == scale
    assert shipped(f"models/{model}.yaml") == before


def test_small_by_its_name():
    settings = Settings(model="small")
    with fake_tensors():
        assert len(fake_backbone(settings).blocks) == 6
        assert len(blocks(fake_text_encoder(settings))) == 2


def test_streamed_text_fits_the_smallest_card():
    settings = Settings(model="5b")
    with fake_tensors():
        encoder = fake_text_encoder(settings)
        weights = Streamed(blocks(encoder), CPU, 0, host="pageable")
        tokens = torch.empty(3, 226, dtype=torch.int64)
        inside = {id(parameter) for parameter in blocks(encoder).parameters()}
        outside = [parameter for parameter in encoder.parameters() if id(parameter) not in inside]
        with Tracker([*outside, *weights.device_buffers()]) as found:
            texts = encode_tokens(encoder, tokens, weights)
    assert texts.shape == (3, 226, 4096)
    assert weights.device_bytes == pytest.approx(2 * 24 * (4096**2 * 4 + 3 * 4096 * 10240) / 12, rel=0.01)
    assert weights.device_bytes < found.peak_bytes < 1.2 * GIB < SMALLEST


def test_tiles_bound_what_decoding_takes():
    settings = Settings(model="5b", frames=9, size="224x160")
    peaks = {}
    with fake_tensors():
        vae, latents = fake_vae(settings), torch.empty(1, 3, 16, 20, 28)
        weights = sum(parameter.nbytes for parameter in vae.parameters())
        for tile in ("none", "144x96"):
            with Tracker(vae.parameters()) as found:
                assert decode(vae, latents, 9, tile).shape == fake_pixels(settings).shape
            peaks[tile] = found.peak_bytes - weights
    assert 2 * peaks["144x96"] < peaks["none"]
    assert peaks["144x96"] < 0.65 * GIB
