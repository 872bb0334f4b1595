"""Query and key preparation in Triton's interpreter, against the definition in float64."""

import pytest
import torch

from ditflow_kernels import qk_norm_rope
from ditflow_kernels.qk_norm_rope import operators, reference
from ditflow_kernels.qk_norm_rope.layout import Wanted
from ditflow_kernels.qk_norm_rope.triton import qk_norm_rope_backward, qk_norm_rope_forward

EPSILON = {torch.float32: 2e-6, torch.float16: 2**-11}
PRECISIONS = pytest.mark.parametrize("precision", EPSILON, ids=str)
SHAPES = {  # batch, text, video, heads, head_dim; a tile has 1024 elements, or all of a token for an RMS norm
    "usual": (1, 2, 5, 3, 64),
    "batch": (3, 2, 3, 2, 16),
    "tiles_of_heads": (1, 1, 2, 40, 64),
    "widest": (1, 1, 2, 11, 128),
    "ragged_channels": (2, 1, 3, 5, 24),
    "no_text": (1, 0, 4, 1, 32),
    "no_video": (2, 3, 0, 3, 16),
    "one_token": (1, 0, 1, 1, 16),
    "one_pair": (1, 2, 3, 5, 2),
}
WAN_SHAPES = {f"{heads}_heads": (1, 0, 2, heads, 128) for heads in (12, 24, 40)}
NORMS = pytest.mark.parametrize("norm", ["layer", "rms"])
PARTS = {  # norm, rope
    "both": ("layer", True),
    "norm_only": ("layer", False),
    "rms_both": ("rms", True),
    "rms_norm_only": ("rms", False),
    "rope_only": (None, True),
    "neither": (None, False),
}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fill new tensors with NaN, so that elements which a kernel does not write are noticed."""
    new_empty = torch.Tensor.new_empty

    def filled(tensor, *size, **options):
        result = new_empty(tensor, *size, **options)
        return result.fill_(float("nan")) if result.is_floating_point() else result

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


def case(shape, parts=("layer", True), precision=torch.float32):
    """query, key, norms, rope and text length; cos and sin are random numbers, not a rotation."""
    batch, text, video, heads, head_dim = shape
    query, key = (0.5 + 3 * torch.randn(2, batch, text + video, heads, head_dim)).to(precision)
    of_kind = {
        "layer": lambda: (1 + torch.randn(head_dim), torch.randn(head_dim), 1e-5),
        "rms": lambda: (1 + torch.randn(heads * head_dim), None, 1e-5),
        None: lambda: None,
    }
    norms = [of_kind[parts[0]]() for _ in range(2)]
    norms = [norm and in_precision(norm, precision) for norm in norms]
    rope = torch.randn(2, 2, video, head_dim) if parts[1] else None
    return query, key, norms, rope, text


def in_precision(norm, precision):
    return *(part if part is None else part.to(precision) for part in norm[:2]), norm[2]


def triton(*arguments):
    return qk_norm_rope(*arguments, backend="triton")


def results(function, query, key, norms, rope, text, precision=None):
    """Both outputs, then the gradients of their weighted sum to query, key and, if given, rope."""
    inputs = [tensor for tensor in (query, key, rope) if tensor is not None]
    if precision is not None:
        inputs = [tensor.to(precision) for tensor in inputs]
        norms = [norm and in_precision(norm, precision) for norm in norms]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = function(*inputs[:2], *norms, inputs[2] if rope is not None else None, text)
    weights = [torch.arange(output.numel()).view(output.shape).cos().to(query.dtype) for output in outputs]
    gradients = torch.autograd.grad(
        outputs, inputs, [weight.to(output.dtype) for weight, output in zip(weights, outputs, strict=True)]
    )
    return [*(output.detach() for output in outputs), *gradients]


def assert_like_reference(query, key, norms, rope, text):
    """Assert errors of at most twice plain PyTorch's, plus an epsilon of the largest value."""
    given = query, key, norms, rope, text
    actual, plain = results(triton, *given), results(reference.qk_norm_rope, *given)
    exact = results(reference.qk_norm_rope, *given, precision=torch.float64)
    for index, (ours, theirs, truth) in enumerate(zip(actual, plain, exact, strict=True)):
        assert ours.shape == truth.shape and ours.dtype == theirs.dtype
        if not truth.numel():
            continue
        assert ours.isfinite().all(), f"tensor {index} is not finite"
        error, plain_error = ((tensor.double() - truth).abs().max() for tensor in (ours, theirs))
        budget = 2 * plain_error + EPSILON[query.dtype] * truth.abs().max()
        assert error <= budget, f"tensor {index}: error {error:.2e}, budget {budget:.2e}"


@PRECISIONS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@NORMS
def test_shapes(norm, shape, precision):
    assert_like_reference(*case(shape, (norm, True), precision))


@PRECISIONS
@pytest.mark.parametrize("shape", WAN_SHAPES.values(), ids=WAN_SHAPES)
def test_wan_shapes(shape, precision):
    assert_like_reference(*case(shape, ("rms", True), precision))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_spoils_no_other(bad):
    query, key, norms, rope, text = case(SHAPES["batch"], ("rms", True))
    expected = results(triton, query, key, norms, rope, text)
    query[1, 4, 1, 3] = bad
    found = results(triton, query, key, norms, rope, text)
    for index in (0, 2):  # the prepared query and its gradient
        assert not found[index][1, 4].isfinite().all()
        expected[index][1, 4] = found[index][1, 4] = 0
    for index in range(4):
        assert torch.equal(found[index], expected[index])


def test_a_token_of_zeros():
    query, key, norms, rope, text = case(SHAPES["batch"], ("rms", True))
    query[1, 4] = 0
    assert_like_reference(query, key, norms, rope, text)
    assert not triton(query, key, *norms, rope, text)[0][1, 4].any()


@PRECISIONS
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_parts(parts, precision):
    assert_like_reference(*case(SHAPES["batch"], parts, precision))


@NORMS
def test_a_norm_of_queries_or_keys_only(norm):
    query, key, norms, rope, text = case(SHAPES["batch"], (norm, True))
    assert_like_reference(query, key, [norms[0], None], rope, text)
    assert_like_reference(query, key, [None, norms[1]], rope, text)


@NORMS
def test_views_of_one_projection(norm):
    """Queries, keys and values side by side in a row, as a fused projection writes them."""
    _, _, norms, rope, text = case(SHAPES["batch"], (norm, True))
    batch, _, video, heads, head_dim = SHAPES["batch"]
    fused = torch.randn(batch, text + video, 3, heads, head_dim)
    query, key, _ = fused.unbind(2)
    assert_like_reference(query, key, norms, rope, text)
    outputs = triton(query, key, *norms, rope, text)
    assert all(output.is_contiguous() for output in outputs)


def test_other_strides():
    query, key, norms, rope, text = case(SHAPES["batch"])
    heads_first = key.transpose(1, 2).contiguous().transpose(1, 2)
    assert_like_reference(query, heads_first, norms, rope, text)
    channels_apart = query.mT.contiguous().mT
    assert_like_reference(channels_apart, channels_apart, norms, rope.mT.contiguous().mT, text)


def test_heads_beyond_the_reach_of_32_bits():
    """Heads 2**31 elements apart are made contiguous first."""
    _, _, norms, rope, text = case((1, 1, 1, 2, 16))
    memory = torch.empty(2**31 + 1024, dtype=torch.float16)
    query = memory.as_strided((1, 2, 2, 16), (32, 16, 2**31, 1))
    query.copy_(torch.randn(1, 2, 2, 16))
    norms = [in_precision(each, torch.float16) for each in norms]
    assert_like_reference(query, query, norms, rope, text)


def test_gradients_with_strides_of_zero():
    """The gradient of a sum is one number, expanded."""
    query, key, norms, rope, text = case(SHAPES["batch"])
    query.requires_grad_()
    expected = torch.autograd.grad(reference.qk_norm_rope(query, key, *norms, rope, text)[0].sum(), query)[0]
    actual = torch.autograd.grad(triton(query, key, *norms, rope, text)[0].sum(), query)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_rows_beyond_the_reach_of_32_bits():
    """Two batches 2**31 elements apart; untouched pages take no memory."""
    _, _, norms, rope, text = case((2, 1, 1, 1, 16))
    memory = torch.empty(2**31 + 1024, dtype=torch.float16)
    query = memory.as_strided((2, 2, 1, 16), (2**31, 16, 16, 1))
    query.copy_(torch.randn(2, 2, 1, 16))
    norms = [in_precision(each, torch.float16) for each in norms]
    ours = qk_norm_rope_forward(query, query, *norms, rope, text)
    near = query.contiguous()
    expected = qk_norm_rope_forward(near, near, *norms, rope, text)
    wanted = Wanted(True, True, True)
    gradients = qk_norm_rope_backward(query, query, query, query, *norms, rope, text, wanted)
    near_gradients = qk_norm_rope_backward(near, near, near, near, *norms, rope, text, wanted)
    for actual, truth in zip([*ours, *gradients], [*expected, *near_gradients], strict=True):
        assert torch.equal(actual, truth) and truth.isfinite().all()


@NORMS
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)], ids=str)
def test_only_the_gradients_asked_for(wanted, norm):
    query, key, norms, rope, text = case(SHAPES["batch"], (norm, True))
    inputs = [tensor for tensor, wants in zip((query, key, rope), wanted, strict=True) if wants]
    for tensor in inputs:
        tensor.requires_grad_()
    ours = triton(query, key, *norms, rope, text)
    theirs = reference.qk_norm_rope(query, key, *norms, rope, text)
    assert [output.requires_grad for output in ours] == [output.requires_grad for output in theirs]
    actual, expected = (
        torch.autograd.grad(sum(output.cos().sum() for output in outputs), inputs)
        for outputs in (ours, theirs)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_rope_of_another_precision():
    query, key, norms, rope, text = case(SHAPES["usual"])
    rope = rope.half().requires_grad_()
    gradients = [
        torch.autograd.grad(function(query, key, *norms, rope, text)[0].cos().sum(), rope)[0]
        for function in (triton, reference.qk_norm_rope)
    ]
    assert gradients[0].dtype == torch.float16
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-2)


def test_no_batch():
    query, key, norms, rope, text = case((0, 2, 3, 2, 16))
    rope.requires_grad_()
    prepared, _ = triton(query, key, *norms, rope, text)
    assert prepared.shape == query.shape
    assert not torch.autograd.grad(prepared.sum(), rope)[0].any()


def test_inputs_and_norms_are_not_changed():
    query, key, norms, rope, text = case(SHAPES["usual"])
    kept = [tensor.clone() for tensor in (query, key, rope, norms[0][0])]
    results(triton, query, key, norms, rope, text)
    for tensor, before in zip((query, key, rope, norms[0][0]), kept, strict=True):
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_operator(parts):
    """Schema, fake implementation (with strides) and autograd registration are what torch expects."""
    query, key, norms, rope, text = case(SHAPES["batch"], parts)
    flat = [part for norm in norms for part in (norm or (None, None, 0.0))]
    for tensor in (query, key, rope):
        if tensor is not None:
            tensor.requires_grad_()
    torch.library.opcheck(operators.prepare, (query, key, *flat, rope, text, "triton"))
