"""TensorRT, replaced by a stand-in: which graphs it gets, and what is refused before anything is loaded."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from tiny_models import backbone_of, random_inputs, tiny_backbone, tiny_transformer
from torch._dynamo.backends import registry

from ditflow.errors import DitflowError, SettingsError
from ditflow.memory.plain import PlainRunner
from ditflow.models.cogvideox.vae import CogVideoXAutoencoder
from ditflow.models.engine import BACKEND, check_engine, decode_with_tensorrt, denoise_with_tensorrt
from ditflow.planning.fallback import check_streaming

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def tensorrt(monkeypatch):
    """Installs a stand-in package; returns a list: for each graph its backend gets, the set of operators."""
    given = []

    def backend(graph, inputs, **options):
        given.append({str(node.target) for node in graph.graph.nodes if node.op != "placeholder"})
        return graph.forward

    module = ModuleType(BACKEND)
    module.__spec__ = ModuleSpec(BACKEND, None)
    monkeypatch.setitem(sys.modules, BACKEND, module)
    monkeypatch.setitem(registry._COMPILER_FNS, BACKEND, backend)
    monkeypatch.setitem(registry._BACKENDS, BACKEND, None)
    return given


def holds(operators, name):
    return any(name in operator for operator in operators)


def test_all_of_a_block_except_attention_goes_through_tensorrt(tensorrt):
    model = tiny_transformer(layers=4)
    eager, engine = backbone_of(model), backbone_of(model)
    denoise_with_tensorrt(engine)
    inputs = random_inputs(eager, 3, 8, 12)
    expected = PlainRunner(eager).forward([inputs], {})
    assert not tensorrt
    torch.testing.assert_close(PlainRunner(engine).forward([inputs], {}), expected)
    before, output, feed_forward = tensorrt  # one engine each, whatever the number of blocks
    assert holds(before, "qk_norm_rope")
    assert holds(feed_forward, "gelu")
    assert not any(holds(operators, "attention") for operators in (before, output, feed_forward))


def test_only_the_decoder_of_the_vae_goes_through_tensorrt(tensorrt):
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=4
    )
    vae.requires_grad_(False).eval()
    latents = torch.randn(1, 4, 2, 4, 4)
    expected = vae.decode(latents).sample
    decode_with_tensorrt(CogVideoXAutoencoder(vae))
    posterior = vae.encode(expected).latent_dist.mode()
    assert posterior.shape == latents.shape
    assert not tensorrt
    torch.testing.assert_close(vae.decode(latents).sample, expected)
    assert len(tensorrt) == 1
    assert holds(tensorrt[0], "conv3d")


def test_a_run_that_optimises_is_refused_first():
    with pytest.raises(SettingsError, match="has no gradient.*`ditflow inject`, --loss x0 or --no-guidance"):
        check_engine("tensorrt", needs_gradient=True, device=CPU)


def test_streamed_weights_are_refused():
    with pytest.raises(SettingsError, match="needs all weights on the device.*larger --memory"):
        check_streaming(SimpleNamespace(engine="tensorrt"), SimpleNamespace(streamed=1))
    check_streaming(SimpleNamespace(engine="tensorrt"), SimpleNamespace(streamed=0))
    check_streaming(SimpleNamespace(engine="torch"), SimpleNamespace(streamed=1))


def test_a_cpu_is_refused(tensorrt):
    with pytest.raises(DitflowError, match="needs a CUDA GPU, and this run computes on cpu"):
        check_engine("tensorrt", needs_gradient=False, device=CPU)


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, BACKEND, None)
    with pytest.raises(DitflowError, match=r'pip install "ditflow\[tensorrt\]"'):
        check_engine("tensorrt", needs_gradient=False, device=CUDA)
    with pytest.raises(DitflowError, match="torch_tensorrt cannot be loaded"):
        denoise_with_tensorrt(tiny_backbone())


def test_supported_choices_are_accepted(tensorrt):
    check_engine("tensorrt", needs_gradient=False, device=CUDA)
    check_engine("torch", needs_gradient=True, device=CPU)
