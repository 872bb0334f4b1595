"""What torch knows of query and key preparation as an operator: opcheck, compile, FLOPs, fake tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ditflow_kernels import qk_norm_rope
from ditflow_kernels.qk_norm_rope import operators

BATCH, TEXT, VIDEO, HEADS, HEAD_DIM = 2, 3, 5, 3, 16


def inputs(rotary=True, fused=False):
    """query, key, norms, rope, text length; from one fused projection, queries and keys are strided views."""
    tokens = torch.randn(2, BATCH, TEXT + VIDEO, HEADS, HEAD_DIM)
    query, key = torch.stack([*tokens], dim=2).unbind(2) if fused else tokens
    query, key = query.detach().requires_grad_(), key.detach().requires_grad_()
    norms = [(torch.randn(HEAD_DIM), torch.randn(HEAD_DIM), 1e-6) for _ in range(2)]
    rope = torch.randn(2, 2, VIDEO, HEAD_DIM, requires_grad=True) if rotary else None
    return query, key, norms, rope, TEXT


def flat(query, key, norms, rope, text):
    return query, key, *norms[0], *norms[1], rope, text, "chunked"


@pytest.mark.parametrize("fused", [False, True], ids=["contiguous", "fused"])
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "norm_only"])
def test_operators_are_what_torch_expects(rotary, fused):
    arguments = flat(*inputs(rotary, fused))
    torch.library.opcheck(operators.prepare, arguments)
    values = [part.detach() if isinstance(part, torch.Tensor) else part for part in arguments]
    gradients = torch.randn_like(values[0]), torch.randn_like(values[1])
    torch.library.opcheck(
        operators.prepare_backward, (*gradients, *values[:-1], [True, True, rotary], values[-1])
    )


def test_compiles_as_one_graph_with_its_gradients():
    query, key, norms, rope, text = inputs()

    def energy(query, key, rope):
        prepared, prepared_key = qk_norm_rope(query, key, *norms, rope, text)
        return (prepared.sin() * prepared_key.cos()).sum()

    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(energy(query, key, rope), (query, key, rope))
    traced = torch.autograd.grad(compiled(query, key, rope), (query, key, rope))
    for ours, expected in zip(traced, eager, strict=True):
        assert torch.equal(ours, expected)


def test_a_result_needs_a_gradient_only_where_its_source_does():
    query, key, norms, rope, text = inputs(rotary=False)
    prepared, prepared_key = qk_norm_rope(query, key.detach(), *norms, rope, text)
    assert prepared.requires_grad and not prepared_key.requires_grad


def test_counts_no_flops():
    query, key, norms, rope, text = inputs()
    with FlopCounterMode(display=False) as counter:
        sum(part.sum() for part in qk_norm_rope(query, key, *norms, rope, text)).backward()
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_fake_tensors_pass_at_real_size(backend):
    """CogVideoX-5B, 49 frames: outputs and gradients of the right kind, and no memory taken."""
    with FakeTensorMode():
        tokens, text, heads, head_dim = 226 + 17550, 226, 48, 64
        fused = torch.empty(1, tokens, 3, heads, head_dim, dtype=torch.bfloat16, requires_grad=True)
        query, key, _ = fused.unbind(2)
        norm = torch.ones(head_dim, dtype=torch.bfloat16), torch.zeros(head_dim, dtype=torch.bfloat16), 1e-6
        rope = torch.empty(2, 2, tokens - text, head_dim, requires_grad=True)
        prepared = operators.qk_norm_rope(query, key, norm, norm, rope, text, backend=backend)
        assert all(part.shape == query.shape and part.dtype == query.dtype for part in prepared)
        assert all(part.is_contiguous() for part in prepared)
        gradients = torch.autograd.grad(sum(part.float().sum() for part in prepared), (fused, rope))
        assert [gradient.shape for gradient in gradients] == [fused.shape, rope.shape]
        assert gradients[1].dtype == torch.float32


def test_triton_on_the_processor_is_refused():
    query, key, norms, rope, text = inputs()
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu: use backend 'chunked'"):
        operators.qk_norm_rope(query, key, *norms, rope, text, backend="triton")
