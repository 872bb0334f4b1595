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
}
PARTS = {
    "both": (True, True),
    "norm_only": (True, False),
    "rope_only": (False, True),
    "neither": (False, False),
}


def case(shape, parts=(True, True), device="cpu"):
    """query, key, norms and rope in float64; cos and sin are random numbers, not a rotation."""
    batch, text, video, heads, head_dim = shape
    draw = torch.Generator().manual_seed(0)

    def numbers(*size):
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(device)

    query, key = 0.5 + 3 * numbers(2, batch, text + video, heads, head_dim)
    norms = [(1 + numbers(head_dim), numbers(head_dim), 1e-5) if parts[0] else None for _ in range(2)]
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
    norms = [norm and (norm[0].to(precision), norm[1].to(precision), norm[2]) for norm in norms]
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
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, precision, device):
    assert_preparation_within_budget(case(shape, device=device), precision)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_parts(parts, precision):
    assert_preparation_within_budget(case(SHAPES["batch"], parts), precision)


@pytest.mark.parametrize("budget", [1, 5000])
def test_a_few_tokens_at_a_time(budget, monkeypatch):
    monkeypatch.setattr(chunked, "workspace_bytes", lambda device: budget)
    assert_preparation_within_budget(case(SHAPES["batch"]), torch.bfloat16)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_equals_diffusers_in_float32(backend):
    """Bit for bit the result of CogVideoX's attention processor, and its gradient to cos and sin."""
    text = 4
    norm = torch.nn.LayerNorm(16, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    tokens = torch.randn(1, text + 9, 3, 16)
    rope = torch.randn(2, 2, 9, 16, requires_grad=True)
    ours, _ = qk_norm_rope(
        tokens, tokens, (norm.weight, norm.bias, norm.eps), None, rope, text, backend=backend
    )
    normed = norm(tokens).transpose(1, 2)
    turned = apply_rotary_emb(normed[:, :, text:], tuple(rope[0]))
    theirs = torch.cat([normed[:, :, :text], turned], dim=2).transpose(1, 2)
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(result.square().sum(), rope)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_inputs_are_not_changed_and_norms_are_constants(backend):
    query, key, norms, rope, text = case(SHAPES["usual"])
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
