"""Linear layers in 8 bits against float64, exact sums of products, and layers that are not rounded."""

import pytest
import torch
from int8_cases import ACTIVATIONS, SHAPES, case, in_precision, result_and_gradient, rounded_case
from kernel_cases import DEVICES, PRECISIONS, assert_within_budget

from ditflow_kernels import int8_input_gradient, int8_linear, quantise_weight
from ditflow_kernels.int8_linear import chunked, products

BACKENDS = pytest.mark.parametrize("backend", ["reference", "chunked"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, activation, precision, device):
    rounded = rounded_case(shape, precision, device)
    exact = result_and_gradient(*in_precision(*rounded, torch.float64), activation, "reference")
    plain = result_and_gradient(*rounded, activation, "reference")
    actual = result_and_gradient(*rounded, activation, "chunked")
    assert_within_budget(actual, plain, exact, precision)


@BACKENDS
def test_whole_numbers_are_multiplied_exactly(backend):
    """With scales of 1 nothing is rounded, so results are sums of products of whole numbers."""
    x, grad = torch.randint(-127, 128, (21, 999)), torch.randint(-127, 128, (21, 1003))
    weight = torch.randint(-127, 128, (1003, 999))
    x[:, 5] = grad[:, 7] = 127
    given = x.float().requires_grad_()
    result = int8_linear(given, weight.to(torch.int8), torch.ones(1003), None, backend=backend)
    (gradient,) = torch.autograd.grad(result, given, grad.float())
    assert torch.equal(result.long(), x @ weight.T)
    assert torch.equal(gradient.long(), grad @ weight)


@BACKENDS
def test_errors_stay_below_the_bound_of_rounding(backend):
    """Against a layer that is not rounded: half a step of each value, times what it is multiplied with."""
    x, weight, bias = case(SHAPES["usual"])
    weight_int8, scale = quantise_weight(weight)
    result, gradient = result_and_gradient(x.float(), weight_int8, scale, bias, None, backend)
    grad = torch.arange(result.numel()).view(result.shape).cos().double()
    half_x = x.abs().amax(-1, keepdim=True) / 254
    half_weight = weight.abs().amax(-1, keepdim=True) / 254
    bound = half_x * (weight.abs() + half_weight).sum(1) + x.abs() @ half_weight.expand_as(weight).T
    assert ((result - (x @ weight.T + bias)).abs() <= 1.001 * bound).all()
    half_grad = (grad * scale).abs().amax(-1, keepdim=True) / 254
    bound = half_grad * weight_int8.double().abs().sum(0) + grad.abs() @ half_weight.expand_as(weight)
    assert ((gradient - grad @ weight).abs() <= 1.001 * bound).all()


def test_a_weight_is_rounded_to_nearest_by_output():
    weight = torch.randn(30, 50)
    weight[3] = 0
    weight[4] *= 1e6
    rounded, scale = quantise_weight(weight.requires_grad_())
    assert scale[3] == 1 and not rounded[3].any() and not scale.requires_grad
    largest = rounded.abs().amax(1)
    assert (largest[torch.arange(30) != 3] == 127).all()
    error = (weight.double() - rounded.double() * scale.double()[:, None]).abs()
    assert (error <= 0.5001 * scale[:, None]).all()


@BACKENDS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_of_zeros_and_rows_too_small_for_a_scale(activation, backend):
    x, *layer = rounded_case(SHAPES["usual"], torch.float32)
    x.view(-1, x.shape[-1])[0] = 0
    x.view(-1, x.shape[-1])[1] = 1e-37
    result, _ = result_and_gradient(x, *layer, activation, backend)
    of_bias = torch.nn.functional.gelu(layer[2], approximate="tanh") if activation else layer[2]
    assert torch.equal(result.flatten(0, -2)[:2], of_bias.expand(2, -1))


@BACKENDS
def test_a_gradient_of_zeros(backend):
    x, *layer = rounded_case(SHAPES["usual"], torch.float32)
    x.requires_grad_()
    result = int8_linear(x, *layer, backend=backend)
    (gradient,) = torch.autograd.grad(result, x, torch.zeros_like(result))
    assert not gradient.any()


@BACKENDS
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_makes_its_token_nan(value, activation, precision, backend):
    x, *layer = rounded_case(SHAPES["one_batch"], precision)
    x[0, 2, 5] = value
    result, gradient = result_and_gradient(x, *layer, activation, backend)
    others = torch.arange(x.shape[1]) != 2
    assert result[0, 2].isnan().all() and result[0, others].isfinite().all()
    assert gradient[0, others].isfinite().all()
    if activation:
        assert gradient[0, 2].isnan().all()


@BACKENDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_makes_its_token_nan(value, backend):
    x, *layer = rounded_case(SHAPES["one_batch"], torch.float32)
    x.requires_grad_()
    result = int8_linear(x, *layer, backend=backend)
    grad = torch.ones_like(result)
    grad[0, 1, 3] = value
    (gradient,) = torch.autograd.grad(result, x, grad)
    assert gradient[0, 1].isnan().all() and gradient[0, 2:].isfinite().all()


@BACKENDS
def test_a_weight_that_is_not_finite_is_seen(backend):
    x, weight, bias = case(SHAPES["one_batch"])
    weight[3, 4] = float("inf")
    result, gradient = result_and_gradient(x.float(), *quantise_weight(weight), bias.float(), None, backend)
    assert result[..., 3].isnan().all() and result[..., :3].isfinite().all() and gradient.isnan().all()


@BACKENDS
def test_only_x_gets_a_gradient(backend):
    x, weight, scale, bias = rounded_case(SHAPES["usual"], torch.float32)
    kept = [tensor.clone() for tensor in (x, weight, scale, bias)]
    scale.requires_grad_(), bias.requires_grad_(), x.requires_grad_()
    assert not int8_linear(x.detach(), weight, scale, bias, backend=backend).requires_grad
    int8_linear(x, weight, scale, bias, activation="gelu_tanh", backend=backend).sum().backward()
    assert x.grad.any() and scale.grad is None and bias.grad is None
    for tensor, before in zip((x, weight, scale, bias), kept, strict=True):
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("budget", [1, 20_000])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_few_tokens_at_a_time(activation, budget, monkeypatch):
    given = rounded_case(SHAPES["usual"], torch.bfloat16)
    whole = result_and_gradient(*given, activation, "chunked")
    monkeypatch.setattr(chunked, "workspace_bytes", lambda device: budget)
    for tensor, expected in zip(result_and_gradient(*given, activation, "chunked"), whole, strict=True):
        assert torch.equal(tensor, expected)


@BACKENDS
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_gradient_by_itself(precision, backend):
    x, weight, scale, bias = rounded_case(SHAPES["usual"], precision)
    result = int8_linear(x.requires_grad_(), weight, scale, bias, backend=backend)
    grad = torch.randn_like(result)
    (expected,) = torch.autograd.grad(result, x, grad)
    assert torch.equal(int8_input_gradient(grad, weight, scale, backend=backend), expected)
    with pytest.raises(ValueError, match=r"grad \[2, 37, 64\] must be \[\.\.\., 96\]"):
        int8_input_gradient(x, weight, scale, backend=backend)


@BACKENDS
def test_strides(backend):
    x, weight, scale, bias = rounded_case(SHAPES["one_batch"], torch.float32)
    expected = result_and_gradient(x, weight, scale, bias, "gelu_tanh", backend)
    x, weight = x.mT.contiguous().mT, weight.T.contiguous().T
    actual = result_and_gradient(x, weight, scale, bias, "gelu_tanh", backend)
    torch.testing.assert_close(actual, expected)


@BACKENDS
def test_no_tokens(backend):
    _, *layer = rounded_case(SHAPES["usual"], torch.float32)
    x = torch.empty(2, 0, layer[0].shape[1], requires_grad=True)
    result = int8_linear(x, *layer, activation="gelu_tanh", backend=backend)
    assert result.shape == (2, 0, len(layer[0]))
    assert torch.autograd.grad(result.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "product", [products.int8_product, products._library_product, products._float_product]
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (17, 8, 16), (40, 3000, 33)], ids=str)
def test_products_are_exact(shape, product, device):
    """Also for the largest values, whose sums of two leave 16 bits."""
    if product is products._library_product and not products._library_is_exact(device):
        pytest.skip("torch's own int8 product is not exact here")
    m, k, n = shape
    left, right = torch.randint(-128, 128, (m, k)), torch.randint(-128, 128, (k, n))
    left[0], right[:, 0] = -128, -128
    found = product(left.to(device, torch.int8), right.to(device, torch.int8))
    assert found.dtype == torch.int32 and torch.equal(found.cpu().long(), left @ right)


def test_a_library_that_saturates_is_not_used(monkeypatch):
    """As on a CPU without VNNI."""
    wrong = torch.full((64, 64), 2**15 - 1, dtype=torch.int32)
    monkeypatch.setattr(torch, "_int_mm", lambda left, right: wrong)
    products._library_is_exact.cache_clear()
    try:
        left = torch.full((3, 4), 127, dtype=torch.int8)
        assert (products.int8_product(left, left.T) == 4 * 127 * 127).all()
    finally:
        products._library_is_exact.cache_clear()
