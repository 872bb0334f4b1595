"""Linear layers in 8 bits in Triton's interpreter: exact sums of products, and the definition in float64."""

from dataclasses import replace

import pytest
import torch
from flow_cases import EPSILON, assert_within_budget

from ditflow_kernels import int8_linear
from ditflow_kernels.int8_linear import operators
from ditflow_kernels.int8_linear.rounding import round_rows
from ditflow_kernels.int8_linear.triton import product, rounding
from ditflow_kernels.tuning import OLDEST, TUNING, ProductTuning, TokenTuning
from tests.kernels.int8_cases import ACTIVATIONS, SHAPES, in_precision, result_and_gradient, rounded_case

PRECISIONS = pytest.mark.parametrize("precision", EPSILON, ids=str)
SMALL = replace(
    TUNING[OLDEST],
    int8_linear_round=TokenTuning(tile_elements=64, num_warps=4, num_stages=1),
    int8_linear_product=ProductTuning(32, 32, 32, group_m=2, num_warps=4, num_stages=1),
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Those of the tuning table would cover the shapes here with one tile."""
    for launcher in (product, rounding):
        monkeypatch.setattr(launcher, "tuning_for", lambda device: SMALL)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fill new tensors with NaN or 99, so that elements which a kernel does not write are noticed."""
    new_empty = torch.Tensor.new_empty

    def filled(tensor, *size, **options):
        result = new_empty(tensor, *size, **options)
        return result.fill_(float("nan") if result.is_floating_point() else 99)

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


@PRECISIONS
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, activation, precision):
    given = rounded_case(shape, precision)
    exact = result_and_gradient(*in_precision(*given, torch.float64), activation, "reference")
    plain = result_and_gradient(*given, activation, "reference")
    assert_within_budget(result_and_gradient(*given, activation, "triton"), plain, exact, precision)


def test_tiles_of_the_tuning_table(monkeypatch):
    for launcher in (product, rounding):
        monkeypatch.setattr(launcher, "tuning_for", lambda device: TUNING[OLDEST])
    test_against_float64(((131,), 70, 139), "gelu_tanh", torch.float32)


@pytest.mark.parametrize("sizes", [(65, 299, 135), (17, 1040, 20), (3, 65, 503)], ids=str)
def test_whole_numbers_are_multiplied_exactly(sizes):
    """With scales of 1 nothing is rounded, so results are sums of products of whole numbers."""
    tokens, inputs, outputs = sizes
    x, grad = torch.randint(-127, 128, (tokens, inputs)), torch.randint(-127, 128, (tokens, outputs))
    weight = torch.randint(-128, 128, (outputs, inputs))
    x[:, 5] = grad[:, 7] = 127
    given = x.float().requires_grad_()
    result = int8_linear(given, weight.to(torch.int8), torch.ones(outputs), None, backend="triton")
    (gradient,) = torch.autograd.grad(result, given, grad.float())
    assert torch.equal(result.long(), x @ weight.T)
    assert torch.equal(gradient.long(), grad @ weight)


def test_sums_beyond_16_bits_and_beyond_float32s_whole_numbers():
    """The largest values: a sum of 2,000 products is 32,258,000, of 26 bits."""
    x = torch.full((17, 2000), 127.0)
    weight = torch.full((16, 2000), 127, dtype=torch.int8)
    weight[1, 0] = 126
    result = int8_linear(x, weight, torch.ones(16), None, backend="triton")
    assert (result[:, 0] == 127 * 127 * 2000).all()
    assert (result[:, 1] == torch.tensor(127 * 127 * 2000 - 127).float()).all()


@PRECISIONS
def test_rounding_is_that_of_plain_pytorch(precision):
    """The same bits: nearest, ties to even, for rows of zeros, of one value, and of values near zero."""
    tokens = torch.randn(9, 333).to(precision)
    tokens[0] = 0
    tokens[1] = torch.arange(333) / 2 - 83
    tokens[1, 0] = 127  # scale 1, so that halves are ties
    tokens[2], tokens[3] = 6e-8, -3
    tokens[4] *= 1e-38 if precision == torch.float32 else 1
    tokens[5, 7] = 1e4
    rounded, scale = rounding.round_tokens(tokens, None, None, True)
    expected, expected_scale = round_rows(tokens.float())
    assert torch.equal(scale, expected_scale) and torch.equal(rounded, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
def test_a_value_that_is_not_finite_makes_its_token_nan(value, activation):
    x, *layer = rounded_case(SHAPES["one_batch"], torch.float32)
    x[0, 2, 5] = value
    result, gradient = result_and_gradient(x, *layer, activation, "triton")
    others = torch.arange(x.shape[1]) != 2
    assert result[0, 2].isnan().all() and result[0, others].isfinite().all()
    assert gradient[0, others].isfinite().all()
    if activation:
        assert gradient[0, 2].isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_gradient_that_is_not_finite_makes_its_token_nan(value):
    x, *layer = rounded_case(SHAPES["one_batch"], torch.float32)
    x.requires_grad_()
    result = int8_linear(x, *layer, backend="triton")
    grad = torch.ones_like(result)
    grad[0, 1, 3] = value
    grad[0, 2] = 0
    (gradient,) = torch.autograd.grad(result, x, grad)
    assert gradient[0, 1].isnan().all() and gradient[0, 3:].isfinite().all() and not gradient[0, 2].any()


def test_strides():
    """Tokens in a wider tensor, channels apart, a weight stored by columns, an expanded gradient."""
    x, weight, scale, bias = rounded_case(SHAPES["one_batch"], torch.float32)
    expected = result_and_gradient(x, weight, scale, bias, "gelu_tanh", "triton")
    wide = torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
    apart, columns = x.mT.contiguous().mT, weight.T.contiguous().T
    spread = torch.stack([scale, scale], dim=1)[:, 0]
    for given in [(wide, weight, scale), (apart, weight, scale), (x, columns, scale), (x, weight, spread)]:
        for ours, theirs in zip(
            result_and_gradient(*given, bias, "gelu_tanh", "triton"), expected, strict=True
        ):
            assert torch.equal(ours, theirs)
    x.requires_grad_()
    of_sum = [
        torch.autograd.grad(int8_linear(x, weight, scale, bias, backend=backend).sum(), x)[0]
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(*of_sum)


def test_tokens_beyond_the_reach_of_32_bits():
    """Two tokens 2**31 elements apart; untouched pages take no memory."""
    _, *layer = rounded_case(SHAPES["one_token"], torch.float16)
    memory = torch.empty(2**31 + 1024, dtype=torch.float16)
    x = memory.as_strided((2, 32), (2**31, 1))
    x.copy_(torch.randn(2, 32))
    ours = int8_linear(x, *layer, backend="triton")
    assert torch.equal(ours, int8_linear(x.contiguous(), *layer, backend="triton")) and ours.isfinite().all()


def test_bias_of_another_precision_and_none():
    x, weight, scale, bias = rounded_case(SHAPES["one_batch"], torch.float32)
    for given in (bias.bfloat16(), None):
        ours, theirs = (
            int8_linear(x, weight, scale, given, backend=name) for name in ("triton", "reference")
        )
        torch.testing.assert_close(ours, theirs)


def test_no_tokens():
    _, *layer = rounded_case(SHAPES["usual"], torch.float32)
    x = torch.empty(0, layer[0].shape[1], requires_grad=True)
    result = int8_linear(x, *layer, activation="gelu_tanh", backend="triton")
    assert torch.autograd.grad(result.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_operator(activation):
    """Schema, fake implementation (with strides) and autograd registration are what torch expects."""
    x, *layer = rounded_case(SHAPES["one_token"], torch.float32)
    given = x.requires_grad_(), *layer, activation, activation is not None, "triton"
    torch.library.opcheck(operators.linear, given)
