"""Our forward through Wan's layers, and its gradients, equal those of diffusers' model."""

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from tiny_models import square
from tiny_wan import diffusers_prediction, tiny_wan, wan_backbone, wan_inputs

from ditflow.errors import DitflowError
from ditflow.memory.placement import make_runner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.presets import presets
from ditflow.memory.streamed import Streamed
from ditflow.models.protocols import Capture, Grid
from ditflow.models.storage import store_weights
from ditflow.models.wan import transformer as wan_transformer
from ditflow.models.wan.family import WanFamily
from ditflow_kernels import motion_flow, motion_flow_loss
from ditflow_kernels.backends import FASTEST

SIZES = {"wide": (3, 8, 12), "square": (2, 8, 8), "tall": (5, 12, 6), "one-frame": (1, 4, 16)}
CPU = torch.device("cpu")


@pytest.fixture
def by_definition(monkeypatch):
    """Operations in the precision of their inputs, rounded where diffusers rounds."""
    monkeypatch.setitem(FASTEST, "cpu", "reference")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_forward_equals_diffusers(size):
    check_forward(size, torch.float32)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_forward_equals_diffusers_in_float64(size, by_definition):
    check_forward(size, torch.float64)


def check_forward(size, dtype):
    backbone = wan_backbone(dtype=dtype)
    inputs = wan_inputs(backbone, *size)
    (found,) = PlainRunner(backbone).forward([inputs], {})
    expected = diffusers_prediction(backbone.network, inputs).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    "changes", [{"cross_attn_norm": False}, {"attention_head_dim": 14}, {"num_attention_heads": 3}], ids=str
)
def test_forward_of_other_configurations_equals_diffusers(changes):
    backbone = wan_backbone(**changes)
    inputs = wan_inputs(backbone)
    (found,) = PlainRunner(backbone).forward([inputs], {})
    expected = diffusers_prediction(backbone.network, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_forward_equals_diffusers_with_a_timestep_for_each_token():
    """As the pipeline of Wan 2.2 TI2V-5B gives them: all equal for text to video."""
    backbone = wan_backbone()
    inputs = wan_inputs(backbone)
    tokens = inputs.timestep.expand(1, 3 * 4 * 6)
    expected = diffusers_prediction(backbone.network, inputs, tokens)
    (found,) = PlainRunner(backbone).forward([inputs], {})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_same_parts_as_in_diffusers_are_computed_in_float32(tmp_path, by_definition):
    """In bfloat16, as loaded: with other parts in float32, roundings would differ by far more."""
    tiny_wan().save_pretrained(tmp_path)
    network = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert network.blocks[0].scale_shift_table.dtype == torch.float32
    backbone = wan_transformer.WanTransformer(network)
    assert backbone.dtype == torch.bfloat16
    inputs = wan_inputs(backbone)
    (found,) = PlainRunner(backbone).forward([inputs], {})
    expected = diffusers_prediction(network, inputs).float()
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize(
    "change",
    [
        {"latents": lambda value: value.roll(1, dims=1)},
        {"prompt": lambda value: -value},
        {"timestep": lambda value: value - 300},
        {"embedding": lambda value: value.roll(1, dims=2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_input_changes_the_prediction(change):
    backbone = wan_backbone()
    inputs, runner = wan_inputs(backbone), PlainRunner(backbone)
    changed = replace(inputs, **{name: of(getattr(inputs, name)) for name, of in change.items()})
    first, second = runner.forward([inputs, changed], {})
    assert (first - second).norm() > 1e-3 * first.norm()


def recorded_queries_and_keys(network, block, monkeypatch):
    """What diffusers' own forward gives the self-attention of a block, filled once it has run."""
    from diffusers.models.transformers import transformer_wan

    calls, original = [], transformer_wan.dispatch_attention_fn

    def watched(query, key, value, **options):
        calls.append((query[0], key[0]))
        return original(query, key, value, **options)

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", watched)
    return lambda: calls[2 * block]  # each block attends to the video, then to the prompt


@pytest.mark.parametrize("checkpoint", ["none", "attention", "block"])
def test_gradient_of_motion_flow_equals_autograd_through_diffusers(checkpoint, monkeypatch, by_definition):
    """In float64 with the reference kernel: the loss and its gradient to the latents."""
    backbone = wan_backbone(layers=4, dtype=torch.float64)
    inputs, clip, grid = wan_inputs(backbone), wan_inputs(backbone), Grid(3, 4, 6)
    capture = Capture("query_key", (2,))
    read = PlainRunner(backbone).features(clip, {}, capture)[2]
    target = motion_flow(*read, grid, 2.0, hard=True, backend="reference")

    def loss(block, features):
        return motion_flow_loss(*features, target, grid, 2.0, rows="moving", backend="reference")

    runner = make_runner(backbone, Streamed(backbone.blocks, CPU, 4), checkpoint, "device")
    value, gradient = runner.gradient(loss, "latents", inputs, {}, capture, 1.0)

    queries_and_keys = recorded_queries_and_keys(backbone.network, 2, monkeypatch)
    latents = inputs.latents.double().requires_grad_()
    diffusers_prediction(backbone.network, replace(inputs, latents=latents))
    expected = loss(2, queries_and_keys())
    (by_autograd,) = torch.autograd.grad(expected, latents)
    torch.testing.assert_close(value.double(), expected.detach().double(), rtol=1e-6, atol=0)
    assert by_autograd.norm() > 0
    assert (gradient - by_autograd).norm() <= 1e-5 * by_autograd.norm()


@pytest.mark.parametrize("chunk", [5, 4096])
@pytest.mark.parametrize("wrt", ["latents", "embedding"])
@pytest.mark.parametrize(
    "capture", [Capture("query_key", (1, 3)), Capture("output", (0, 2))], ids=lambda capture: capture.what
)
@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_each_preset_equals_plain_autograd(preset, capture, wrt, chunk, monkeypatch):
    monkeypatch.setattr(wan_transformer, "CHUNK", chunk)
    plain = PlainRunner(wan_backbone(layers=4))
    inputs, clip = wan_inputs(plain.transformer), wan_inputs(plain.transformer)
    injected = plain.features(clip, {}, Capture("key_value", (0, 2)))
    expected = plain.gradient(square, wrt, inputs, injected, capture, 8.0)

    least = capture.deepest + 1 if preset.checkpoint == "none" else 0  # a graph holds those weights
    for resident in sorted({least, 4}):
        backbone = wan_backbone(layers=4)
        weights = Streamed(backbone.blocks, CPU, resident)
        runner = make_runner(backbone, weights, preset.checkpoint, preset.block_inputs)
        value, gradient = runner.gradient(square, wrt, inputs, injected, capture, 8.0)
        torch.testing.assert_close(value, expected[0], rtol=1e-5, atol=0)
        assert expected[1].norm() > 0
        assert (gradient - expected[1]).norm() <= 1e-5 * expected[1].norm()


def test_key_value_is_what_prepare_makes():
    backbone = wan_backbone()
    carried, shared = backbone.embed(wan_inputs(backbone))
    found = backbone.key_value(1, carried, shared)
    for made, expected in zip(found, backbone.prepare(1, carried, shared).key_value, strict=True):
        torch.testing.assert_close(made, expected)


def test_compiled_pieces_compute_the_same():
    backbone = wan_backbone()
    inputs, runner = wan_inputs(backbone), PlainRunner(backbone)
    (expected,) = runner.forward([inputs], {})
    backbone.compile_pieces("aot_eager")
    torch.testing.assert_close(runner.forward([inputs], {})[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpoint", ["none", "block"])
@pytest.mark.parametrize("stored", ["full", "int8"])
def test_compiled_pieces_have_the_same_gradients(checkpoint, stored):
    found = []
    for compiled in (False, True):
        backbone = wan_backbone()
        store_weights(backbone.blocks, WanFamily.packed_parts, stored, CPU)
        if compiled:
            backbone.compile_pieces("aot_eager")
        inputs = wan_inputs(backbone)
        runner = make_runner(backbone, Streamed(backbone.blocks, CPU, 3), checkpoint, "device")
        found.append(runner.gradient(square, "latents", inputs, {}, Capture("output", (2,)), 1.0)[1])
    assert (found[1] - found[0]).norm() <= 1e-5 * found[0].norm() and found[0].norm() > 0


@pytest.mark.parametrize("changes", [{"image_dim": 8}, {"added_kv_proj_dim": 8}], ids=str)
def test_weights_for_image_to_video_are_refused(changes):
    with pytest.raises(DitflowError, match="image-to-video weights given; text-to-video"):
        wan_transformer.WanTransformer(tiny_wan(**changes))
