"""Norm and rotation of queries and keys against float64 and against diffusers."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from kernel_cases import DEVICES, PRECISIONS, assert_within_budget

from ditflow_kernels import qk_norm_rope
from ditflow_kernels.qk_norm_rope import chunked

SHAPES = {  # batch, text, video, heads, head_dim
    "usual": (1, 5, 24, 3, 64),
    "batch": (2, 3, 11, 2, 16),
    "no_text": (1, 0, 7, 1, 128),
    "no_video": (2, 4, 0, 3, 32),
    "one_pair": (1, 2, 3, 5, 2),
    "wan": (1, 0, 5, 12, 128),
}
NORMS = "layer", "rms"
PARTS = {  # norm, rope
    "both": ("layer", True),
    "norm_only": ("layer", False),
    "rms_norm_only": ("rms", False),
    "rope_only": (None, True),
    "neither": (None, False),
}


def case(shape, parts=("layer", True), device="cpu"):
    """query, key, norms and rope in float64; cos and sin are random numbers, not a rotation."""
    batch, text, video, heads, head_dim = shape
    draw = torch.Generator().manual_seed(0)

    def numbers(*size):
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(device)

    query, key = 0.5 + 3 * numbers(2, batch, text + video, heads, head_dim)
    of_kind = {
        "layer": lambda: (1 + numbers(head_dim), numbers(head_dim), 1e-5),
        "rms": lambda: (1 + numbers(heads * head_dim), None, 1e-5),
        None: lambda: None,
    }
    norms = [of_kind[parts[0]]() for _ in range(2)]
    rope = numbers(2, 2, video, head_dim) if parts[1] else None
    return query, key, norms, rope, text


def prepared_and_gradients(function, query, key, norms, rope, text, **options):
    """Both outputs, then the gradients of their weighted sum to query, key and, if given, rope."""
    inputs = [tensor.clone().requires_grad_() for tensor in (query, key, rope) if tensor is not None]
    prepared = function(*inputs[:2], *norms, inputs[2] if rope is not None else None, text, **options)
    weights = [
        torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape).cos() for tensor in prepared
    ]
    total = sum((tensor * weight.to(tensor)).sum() for tensor, weight in zip(prepared, weights, strict=True))
    return [*(tensor.detach() for tensor in prepared), *torch.autograd.grad(total, inputs)]


def in_precision(query, key, norms, rope, text, precision):
    def converted(part):
        return part.to(precision) if isinstance(part, torch.Tensor) else part

    norms = [norm and tuple(map(converted, norm)) for norm in norms]
    return query.to(precision), key.to(precision), norms, None if rope is None else rope.float(), text


def assert_preparation_within_budget(arguments, precision):
    rounded = in_precision(*arguments, precision)
    same_numbers = in_precision(*rounded, torch.float64)
    exact = prepared_and_gradients(qk_norm_rope, *same_numbers, backend="reference")
    plain = prepared_and_gradients(qk_norm_rope, *rounded, backend="reference")
    actual = prepared_and_gradients(qk_norm_rope, *rounded, backend="chunked")
    tensors = [(a, p, e) for a, p, e in zip(actual, plain, exact, strict=True) if e.numel()]
    assert_within_budget(*zip(*tensors, strict=True), precision)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, norm, precision, device):
    assert_preparation_within_budget(case(shape, (norm, True), device), precision)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_parts(parts, precision):
    assert_preparation_within_budget(case(SHAPES["batch"], parts), precision)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("budget", [1, 5000])
def test_a_few_tokens_at_a_time(budget, norm, monkeypatch):
    monkeypatch.setattr(chunked, "workspace_bytes", lambda device: budget)
    assert_preparation_within_budget(case(SHAPES["batch"], (norm, True)), torch.bfloat16)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", NORMS)
def test_equals_diffusers_in_float32(kind, backend):
    """Bit for bit the result of a model's attention processor, and its gradient to cos and sin."""
    text = 4 if kind == "layer" else 0
    norm = torch.nn.LayerNorm(16, eps=1e-6) if kind == "layer" else torch.nn.RMSNorm(3 * 16, eps=1e-6)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(1, text + 9, 3, 16)
    rope = torch.randn(2, 2, 9, 16, requires_grad=True)
    given = norm.weight, getattr(norm, "bias", None), norm.eps
    ours, _ = qk_norm_rope(tokens, tokens, given, None, rope, text, backend=backend)
    by_norm = tokens if kind == "layer" else tokens.flatten(-2)
    normed = norm(by_norm).view(tokens.shape).transpose(1, 2)
    turned = apply_rotary_emb(normed[:, :, text:], tuple(rope[0]))
    theirs = torch.cat([normed[:, :, :text], turned], dim=2).transpose(1, 2)
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(result.square().sum(), rope)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_spoils_no_other(bad, backend):
    query, key, norms, rope, text = in_precision(*case(SHAPES["batch"], ("rms", True)), torch.float32)
    given = norms, rope, text
    expected = prepared_and_gradients(qk_norm_rope, query, key, *given, backend=backend)
    query[1, 7, 1, 3] = bad
    found = prepared_and_gradients(qk_norm_rope, query, key, *given, backend=backend)
    for index in (0, 2):  # the prepared query and its gradient
        assert not found[index][1, 7].isfinite().all()
        expected[index][1, 7] = found[index][1, 7] = 0
        assert torch.equal(found[index], expected[index])
    assert torch.equal(found[1], expected[1]) and torch.equal(found[3], expected[3])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_token_of_zeros_stays_zero(backend):
    """And its gradient is that of `x * weight / sqrt(eps)`, then turned."""
    query, key, norms, rope, text = in_precision(*case(SHAPES["no_text"], ("rms", True)), torch.float32)
    query[0, 3] = 0
    prepared, _, gradient, *_ = prepared_and_gradients(
        qk_norm_rope, query, key, norms, rope, text, backend=backend
    )
    assert not prepared[0, 3].any()
    weight, _, eps = norms[0]

    def linear(values):
        turned = torch.stack([-values[:, 1::2], values[:, ::2]], dim=-1).flatten(-2)
        return values * rope[0, 0, 3] + turned * rope[0, 1, 3]

    zeros = torch.zeros(1, 128, requires_grad=True)
    upstream = torch.arange(prepared.numel()).view(prepared.shape).cos()[0, 3]
    (expected,) = torch.autograd.grad(linear(zeros * weight / eps**0.5), zeros, upstream)
    torch.testing.assert_close(gradient[0, 3], expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_inputs_are_not_changed_and_norms_are_constants(backend, norm):
    query, key, norms, rope, text = case(SHAPES["usual"], (norm, True))
    query, key, norms, rope, text = in_precision(query, key, norms, rope, text, torch.float32)
    query.requires_grad_()
    norms[0][0].requires_grad_()
    kept = [tensor.clone() for tensor in (query, key, rope)]
    prepared, prepared_key = qk_norm_rope(query, key, *norms, rope, text, backend=backend)
    assert not prepared_key.requires_grad
    prepared.sum().backward()
    assert norms[0][0].grad is None and query.grad is not None
    for tensor, before in zip((query, key, rope), kept, strict=True):
        assert torch.equal(tensor, before)
