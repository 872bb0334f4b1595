"""Models of real size on fake tensors: their shapes, and that the real code runs on them."""

import copy

import pytest
import torch

from ditflow.files import shipped
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.streamed import Streamed
from ditflow.memory.tracker import Tracker
from ditflow.models.loading import ModelFolder
from ditflow.planning.fake import FakeModel
from ditflow.settings import Settings

GIB = 1 << 30
CPU = torch.device("cpu")
SMALLEST = 3.4 * GIB  # usable on a 4 GB card


def sizes(module):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}


def fakes(settings):
    """The three networks, and inputs of the transformer."""
    with fake_tensors():
        model = FakeModel(settings)
        encoder, vae, transformer = model.text_encoder(), model.autoencoder(), model.transformer()
        return encoder.network, vae.network, transformer.network, model.inputs(transformer)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_fakes_of_a_folder_equal_what_it_loads(small_folder, dtype):
    settings = Settings(model=str(small_folder), dtype=dtype)
    folder = ModelFolder(str(small_folder), dtype, CPU)
    encoder, vae, transformer, inputs = fakes(settings)
    assert sizes(encoder) == sizes(folder.text_encoder().network)
    assert sizes(vae) == sizes(folder.autoencoder().network)
    assert sizes(transformer) == sizes(folder.transformer().network)
    assert vae.config.scaling_factor == folder.autoencoder().network.config.scaling_factor
    assert inputs.latents.shape == (1, 6, 8, settings.size.height // 4, settings.size.width // 4)


@pytest.mark.parametrize("model, transformer, scale", [("5b", 5.570e9, 0.7), ("2b", 1.694e9, 1.15258426)])
def test_fakes_of_the_real_models(model, transformer, scale):
    settings, before = Settings(model=model), copy.deepcopy(shipped(f"models/{model}.yaml"))
    encoder, vae, network, _ = fakes(settings)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(encoder) == 4_762_310_656
    assert count(vae) == 215_583_907
    assert count(network) == pytest.approx(transformer, rel=1e-3)
    assert vae.config.scaling_factor == scale
    assert shipped(f"models/{model}.yaml") == before


def test_the_small_model_by_its_name():
    settings = Settings(model="small")
    with fake_tensors():
        model = FakeModel(settings)
        assert len(model.transformer().blocks) == 6
        assert len(model.text_encoder().layers) == 2


def test_streamed_text_fits_the_smallest_card():
    settings = Settings(model="5b")
    with fake_tensors():
        encoder = FakeModel(settings).text_encoder()
        weights = Streamed(encoder.layers, CPU, 0, host="pageable")
        tokens = torch.empty(3, 226, dtype=torch.int64)
        inside = {id(parameter) for parameter in encoder.layers.parameters()}
        outside = [parameter for parameter in encoder.network.parameters() if id(parameter) not in inside]
        with Tracker([*outside, *weights.device_buffers()]) as found:
            texts = encoder.encode(tokens, weights)
    assert texts.shape == (3, 226, 4096)
    assert weights.device_bytes == pytest.approx(2 * 24 * (4096**2 * 4 + 3 * 4096 * 10240) / 12, rel=0.01)
    assert weights.device_bytes < found.peak_bytes < 1.2 * GIB < SMALLEST


def test_tiles_bound_the_memory_of_decoding():
    settings = Settings(model="5b", frames=9, size="224x160")
    peaks = {}
    with fake_tensors():
        model, latents = FakeModel(settings), torch.empty(1, 3, 16, 20, 28)
        vae = model.autoencoder()
        weights = sum(parameter.nbytes for parameter in vae.network.parameters())
        for tile in ("none", "144x96"):
            with Tracker(vae.network.parameters()) as found:
                assert vae.decode(latents, 9, tile).shape == model.pixels().shape
            peaks[tile] = found.peak_bytes - weights
    assert 2 * peaks["144x96"] < peaks["none"]
    assert peaks["144x96"] < 0.65 * GIB
