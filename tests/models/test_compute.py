"""Blocks that multiply in 8 bits: what is replaced, gradients in every runner, refusals, resume."""

from dataclasses import replace

import pytest
import torch
from quantised_models import exact_transformer, relative
from tiny_models import backbone_of, random_inputs
from torch import nn
from torch.nn.functional import cosine_similarity, gelu, linear
from torch.utils._python_dispatch import TorchDispatchMode

from ditflow import resume, transfer
from ditflow.errors import DitflowError, SettingsError
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.streamed import Streamed
from ditflow.models.cogvideox.family import CogVideoXFamily
from ditflow.models.compute import Int8Linear, check_compute, compute_in, input_gradient
from ditflow.models.protocols import Capture
from ditflow.progress import Progress
from ditflow.run_folder.run import read_latents
from ditflow_kernels import int8_linear

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PARTS = CogVideoXFamily.packed_parts
EPSILON = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # of a result, relative
KINDS = pytest.mark.parametrize("kind", ["int8", "int8-forward"])


def computing_in(kind):
    transformer = exact_transformer()
    compute_in(kind, transformer.transformer_blocks, PARTS, CPU)
    return transformer


def energy(block, read):
    return read.query.square().mean() + read.key.square().mean()


def results(runner, inputs):
    """The gradient of the latents, and a prediction."""
    capture = Capture("query_key", (1,))
    return runner.gradient(energy, "latents", inputs, {}, capture, 1.0)[1], runner.forward([inputs], {})[0]


def test_only_linear_layers_of_the_parts_are_replaced():
    transformer = computing_in("int8")
    for block in transformer.transformer_blocks:
        replaced = [name for name, layer in block.named_modules() if isinstance(layer, Int8Linear)]
        assert len(replaced) == 6 and all(name.startswith(("attn1.", "ff.")) for name in replaced)
        assert isinstance(block.norm1.linear, nn.Linear)
        assert block.ff.net[0].activation == "gelu_tanh" and block.ff.net[2].activation is None
    for kind in ("bf16", "fp16-sums"):
        assert not any(isinstance(layer, Int8Linear) for layer in computing_in(kind).modules())


@KINDS
def test_a_layer_and_the_gradient_of_its_inputs(kind):
    exact = nn.Linear(48, 40)
    layer = Int8Linear(exact, CPU, gradients=kind == "int8")
    assert all(not parameter.requires_grad for parameter in layer.parameters())
    inputs, grad = torch.randn(2, 9, 48, requires_grad=True), torch.randn(2, 9, 40)
    (found,) = torch.autograd.grad(layer(inputs), inputs, grad)
    assert torch.equal(found, input_gradient(layer, grad))
    assert torch.equal(grad @ exact.weight, input_gradient(exact, grad))
    rounded = layer.weight_int8 * layer.scale[:, None]
    assert 1e-4 < relative(layer(inputs), linear(inputs, exact.weight, exact.bias).double()) < 0.02
    error = relative(found, (grad @ rounded).double())
    assert 1e-4 < error < 0.02 if kind == "int8" else error < 1e-6


@KINDS
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_a_layer_with_gelu_is_the_layer_and_then_gelu(kind, dtype):
    exact = nn.Linear(64, 96).to(dtype)
    plain, fused = (Int8Linear(exact, CPU, kind == "int8", activation) for activation in (None, "gelu_tanh"))
    inputs, grad = torch.randn(2, 9, 64).to(dtype).requires_grad_(), torch.randn(2, 9, 96).to(dtype)
    apart = gelu(plain(inputs), approximate="tanh")
    (expected,) = torch.autograd.grad(apart, inputs, grad)
    (found,) = torch.autograd.grad(together := fused(inputs), inputs, grad)
    assert relative(together, apart.double()) < EPSILON[dtype] and together.dtype == found.dtype == dtype
    with torch.no_grad():
        assert relative(fused(inputs), apart.double()) < EPSILON[dtype]

    truth = inputs.detach().double().requires_grad_()
    layer = plain.weight_int8, plain.scale, plain.bias
    reference = int8_linear(truth, *layer, activation="gelu_tanh", backend="reference")
    (wanted,) = torch.autograd.grad(reference, truth, grad.double())
    assert relative(found, wanted) < 2 * relative(expected, wanted) + EPSILON[dtype]
    assert relative(together, reference) < 2 * relative(apart, reference) + EPSILON[dtype]


@KINDS
def test_gelu_is_part_of_the_product(kind):
    """int8-forward differentiates another product, so with gradients its GELU is apart."""
    feed, tokens = computing_in(kind).transformer_blocks[0].ff, torch.randn(1, 30, 64)
    with torch.no_grad():
        assert not has_gelu(lambda: feed(tokens))
    assert has_gelu(lambda: feed(tokens.requires_grad_())) == (kind == "int8-forward")
    assert has_gelu(lambda: exact_transformer().transformer_blocks[0].ff(tokens))


def has_gelu(call):
    with Operators() as operators:
        call()
    return torch.ops.aten.gelu.default in operators.called


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.append(function)
        return function(*args, **(kwargs or {}))


@KINDS
def test_every_runner_finds_the_same_gradient(kind):
    backbone, exact = backbone_of(computing_in(kind)), backbone_of(exact_transformer())
    inputs = random_inputs(backbone, 3, 8, 12)
    whole, truth = results(PlainRunner(backbone), inputs), results(PlainRunner(exact), inputs)
    for found, wanted in zip(whole, truth, strict=True):
        assert cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.98
        assert relative(found, wanted.double()) > 1e-4  # rounding is seen
    blockwise = results(BlockwiseRunner(backbone), inputs)
    for found, wanted in zip(blockwise, whole, strict=True):
        assert cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.999
    streamed = BlockwiseRunner(backbone, Streamed(backbone.blocks, CPU, 0, host="pageable"))
    assert all(map(torch.equal, results(streamed, inputs), blockwise))


def test_other_settings_that_rule_it_out_are_refused():
    half, wide = torch.float16, torch.bfloat16
    check_compute("bf16", "nf4", "tensorrt", wide, CPU)
    check_compute("int8", "int8", "torch", wide, CPU)
    check_compute("fp16-sums", "nf4", "torch", half, CUDA)
    check_compute("fp16-sums", "full", "torch", half)
    with pytest.raises(SettingsError, match="--compute int8 stores weights as int8; leave out --weights fp8"):
        check_compute("int8", "fp8", "torch", wide)
    for kind in ("int8-forward", "fp16-sums"):
        with pytest.raises(SettingsError, match=f"--compute {kind} works only with --engine torch"):
            check_compute(kind, "full", "tensorrt", half)
    with pytest.raises(SettingsError, match="adds products of float16; use --dtype float16, not bfloat16"):
        check_compute("fp16-sums", "full", "torch", wide, CUDA)
    with pytest.raises(
        DitflowError, match="needs a CUDA GPU, and this run computes on cpu; use --compute bf"
    ):
        check_compute("fp16-sums", "full", "torch", half, CPU)


@KINDS
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
def test_one_graph_holds_a_layer_and_its_gradient(kind, activation):
    """As torch.compile needs for a piece of a block."""
    layer = Int8Linear(nn.Linear(48, 40), CPU, kind == "int8", activation)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    inputs, grad = torch.randn(9, 48, requires_grad=True), torch.randn(9, 40)
    (found,) = torch.autograd.grad(compiled(inputs), inputs, grad)
    (expected,) = torch.autograd.grad(layer(inputs), inputs, grad)
    assert torch.equal(compiled(inputs), layer(inputs)) and torch.equal(found, expected)


@KINDS
def test_a_stopped_run_resumes_bit_for_bit(kind, settings, tmp_path):
    class Stop(Progress):
        steps = 0

        def step(self, loss=None, preview=None):
            self.steps += loss is not None
            if self.steps == 1:
                raise KeyboardInterrupt

    exact = read_latents(transfer(settings).folder)[1]
    settings = replace(settings, compute=kind, output=str(tmp_path / "whole"))
    whole = read_latents(transfer(settings).folder)[1]
    assert 0 < relative(whole, exact.double()) < 0.5
    with pytest.raises(KeyboardInterrupt):
        transfer(replace(settings, output=str(tmp_path / "stopped")), Stop())
    assert torch.equal(read_latents(resume(tmp_path / "stopped").folder)[1], whole)
