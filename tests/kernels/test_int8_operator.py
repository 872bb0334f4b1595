"""Linear layers in 8 bits as torch operators: opcheck, compile, FLOPs, saved tensors, fake tensors."""

import pytest
import torch
from int8_cases import ACTIVATIONS, SHAPES, rounded_case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ditflow_kernels import int8_linear
from ditflow_kernels.fakes import FAKES
from ditflow_kernels.int8_linear import operators, triton

TOKENS, INPUTS, OUTPUTS = 74, 64, 96
PRODUCT = 2 * TOKENS * INPUTS * OUTPUTS
BACKENDS = pytest.mark.parametrize("backend", ["chunked", "triton"])


def arguments(precision=torch.float32):
    x, *layer = rounded_case(SHAPES["usual"], precision)
    return x.flatten(0, 1).requires_grad_(), *layer


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no_bias"])
def test_operators_are_what_torch_expects(biased, activation, precision):
    x, weight, scale, bias = arguments(precision)
    keeps = activation is not None
    given = x, weight, scale, bias if biased else None, activation, keeps, "chunked"
    torch.library.opcheck(operators.linear, given)
    result, before = operators.linear(*given)
    grad = torch.randn_like(result)
    before = before.detach() if keeps else None
    torch.library.opcheck(operators.input_gradient, (grad, weight, scale, before, "chunked"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiles_as_one_graph_with_its_gradient(activation):
    x, *layer = arguments()

    def energy(x):
        return int8_linear(x.sin(), *layer, activation=activation).cos().sum()

    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    [eager], [traced] = (torch.autograd.grad(call(x), x) for call in (energy, compiled))
    assert torch.equal(eager, traced) and eager.any()


@BACKENDS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_counts_a_product_forward_and_one_backward(activation, backend):
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        x, *layer = (tensor.detach().clone() for tensor in arguments())
        x.requires_grad_()
        result = int8_linear(x, *layer, activation=activation, backend=backend)
        assert counter.get_total_flops() == PRODUCT
        torch.autograd.grad(result.sum(), x)
        assert counter.get_total_flops() == 2 * PRODUCT


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saves_only_what_was_before_the_activation(activation):
    x, *layer = arguments()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        int8_linear(x, *layer, activation=activation)
    beside = [tensor for tensor in saved if tensor.numel() > OUTPUTS and tensor.dtype != torch.int8]
    assert [tensor.shape for tensor in beside] == ([(TOKENS, OUTPUTS)] if activation else [])


def test_keeps_nothing_without_a_gradient():
    x, *layer = arguments()
    kept = [
        operators.linear(x.detach(), *layer, "gelu_tanh", keeps, "chunked")[1].numel()
        for keeps in (False, True)
    ]
    assert kept == [0, TOKENS * OUTPUTS]
    with pytest.raises(ValueError, match="needs keeps=True"):
        operators.linear(x, *layer, "gelu_tanh", False, "chunked")


def test_a_second_derivative_is_refused():
    x, *layer = arguments()
    (grad,) = torch.autograd.grad(int8_linear(x, *layer).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), x)


@BACKENDS
def test_fake_tensors_at_real_size(backend):
    """The wide layer of CogVideoX-5B's feed-forward, 49 frames."""
    with FakeTensorMode():
        x = torch.empty(1, 226 + 17550, 3072, dtype=torch.bfloat16, requires_grad=True)
        weight, scale = torch.empty(12288, 3072, dtype=torch.int8), torch.empty(12288)
        bias = torch.empty(12288, dtype=torch.bfloat16)
        result = int8_linear(x, weight, scale, bias, activation="gelu_tanh", backend=backend)
        assert result.shape == (1, 17776, 12288) and result.dtype == x.dtype and result.is_contiguous()
        (gradient,) = torch.autograd.grad(result, x, result.detach())
        assert gradient.shape == x.shape and gradient.dtype == x.dtype


def test_the_operators_fake_is_the_launcher_without_the_launch(monkeypatch):
    called = []

    def recorded(launcher):
        def launched(*given, **options):
            called.append(options)
            return launcher(*given, **options)

        return launched

    for name in ("int8_linear_forward", "int8_linear_backward"):
        monkeypatch.setattr(triton, name, recorded(getattr(triton, name)))
    x, weight, scale, bias = arguments()
    fake = FAKES[torch.ops.ditflow.int8_linear.default]
    result, before = fake(x, weight, scale, bias, "gelu_tanh", True, "triton")
    FAKES[torch.ops.ditflow.int8_linear_backward.default](result, weight, scale, before, "triton")
    assert called == [{"launch": False}] * 2


def test_triton_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu: use backend 'chunked'"):
        int8_linear(*arguments(), backend="triton")
