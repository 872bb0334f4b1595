"""Query and key preparation as a torch operator: opcheck, compile, FLOPs, fake tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ditflow_kernels import qk_norm_rope
from ditflow_kernels.qk_norm_rope import operators, triton
from ditflow_kernels.qk_norm_rope.layout import Wanted

BATCH, TEXT, VIDEO, HEADS, HEAD_DIM = 2, 3, 5, 3, 16


def inputs(rotary=True, fused=False, rms=False):
    """query, key, norms, rope, text length; if fused, query and key are strided views of one projection."""
    tokens = torch.randn(2, BATCH, TEXT + VIDEO, HEADS, HEAD_DIM)
    query, key = torch.stack([*tokens], dim=2).unbind(2) if fused else tokens
    query, key = query.detach().requires_grad_(), key.detach().requires_grad_()
    norms = [(torch.randn(HEAD_DIM), torch.randn(HEAD_DIM), 1e-6) for _ in range(2)]
    if rms:
        norms = [(torch.randn(HEADS * HEAD_DIM), None, 1e-6) for _ in range(2)]
    rope = torch.randn(2, 2, VIDEO, HEAD_DIM, requires_grad=True) if rotary else None
    return query, key, norms, rope, TEXT


def flat(query, key, norms, rope, text):
    return query, key, *norms[0], *norms[1], rope, text, "chunked"


@pytest.mark.parametrize("fused", [False, True], ids=["contiguous", "fused"])
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "norm_only"])
@pytest.mark.parametrize("rms", [False, True], ids=["layer_norm", "rms_norm"])
def test_operators_are_what_torch_expects(rms, rotary, fused):
    arguments = flat(*inputs(rotary, fused, rms))
    torch.library.opcheck(operators.prepare, arguments)
    values = [part.detach() if isinstance(part, torch.Tensor) else part for part in arguments]
    gradients = torch.randn_like(values[0]), torch.randn_like(values[1])
    torch.library.opcheck(
        operators.prepare_backward, (*gradients, *values[:-1], [True, True, rotary], values[-1])
    )


@pytest.mark.parametrize("rms", [False, True], ids=["layer_norm", "rms_norm"])
def test_compiles_as_one_graph_with_its_gradients(rms):
    query, key, norms, rope, text = inputs(rms=rms)

    def energy(query, key, rope):
        prepared, prepared_key = qk_norm_rope(query, key, *norms, rope, text)
        return (prepared.sin() * prepared_key.cos()).sum()

    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(energy(query, key, rope), (query, key, rope))
    traced = torch.autograd.grad(compiled(query, key, rope), (query, key, rope))
    for ours, expected in zip(traced, eager, strict=True):
        assert torch.equal(ours, expected)


def test_a_result_needs_a_gradient_only_if_its_input_does():
    query, key, norms, rope, text = inputs(rotary=False)
    prepared, prepared_key = qk_norm_rope(query, key.detach(), *norms, rope, text)
    assert prepared.requires_grad and not prepared_key.requires_grad


@pytest.mark.parametrize("rms", [False, True], ids=["layer_norm", "rms_norm"])
def test_counts_no_flops(rms):
    query, key, norms, rope, text = inputs(rms=rms)
    with FlopCounterMode(display=False) as counter:
        sum(part.sum() for part in qk_norm_rope(query, key, *norms, rope, text)).backward()
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("rms", [False, True], ids=["5b", "wan-14b"])
def test_fake_tensors_at_real_size(rms, backend):
    """49 frames of CogVideoX-5B and of Wan 14B: outputs and gradients have the right shapes and dtypes."""
    with FakeTensorMode():
        tokens, text, heads, head_dim = (13 * 30 * 52, 0, 40, 128) if rms else (226 + 17550, 226, 48, 64)
        fused = torch.empty(1, tokens, 3, heads, head_dim, dtype=torch.bfloat16, requires_grad=True)
        query, key, _ = fused.unbind(2)
        norm = torch.ones(head_dim, dtype=torch.bfloat16), torch.zeros(head_dim, dtype=torch.bfloat16), 1e-6
        if rms:
            norm = torch.ones(heads * head_dim, dtype=torch.bfloat16), None, 1e-6
        rope = torch.empty(2, 2, tokens - text, head_dim, requires_grad=True)
        prepared = operators.qk_norm_rope(query, key, norm, norm, rope, text, backend=backend)
        assert all(part.shape == query.shape and part.dtype == query.dtype for part in prepared)
        assert all(part.is_contiguous() for part in prepared)
        gradients = torch.autograd.grad(sum(part.float().sum() for part in prepared), (fused, rope))
        assert [gradient.shape for gradient in gradients] == [fused.shape, rope.shape]
        assert gradients[1].dtype == torch.float32


@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "norm_only"])
@pytest.mark.parametrize("rms", [False, True], ids=["layer_norm", "rms_norm"])
def test_triton_allocates_only_its_results(rms, rotary):
    """Without the launch, the launchers allocate exactly the bytes that they return."""
    query, key, norms, rope, text = inputs(rotary, fused=True, rms=rms)
    gradients = torch.randn(2, BATCH, TEXT + VIDEO, HEADS, HEAD_DIM)
    wanted = Wanted(query=True, key=True, rope=rotary)
    with torch.no_grad(), Allocated() as allocated:
        prepared = triton.qk_norm_rope_forward(query, key, *norms, rope, text, launch=False)
    assert allocated.bytes == sum(part.nbytes for part in prepared) == 2 * query.nbytes
    with torch.no_grad(), Allocated() as allocated:
        found = triton.qk_norm_rope_backward(*gradients, query, key, *norms, rope, text, wanted, launch=False)
    assert allocated.bytes == sum(part.nbytes for part in found if part is not None)


class Allocated(TorchDispatchMode):
    """Total bytes that operators allocated, freed or not."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {part.untyped_storage().data_ptr() for part in tree_leaves(args) if torch.is_tensor(part)}
        for part in tree_leaves(result):
            if torch.is_tensor(part) and part.untyped_storage().data_ptr() not in given:
                self.bytes += part.untyped_storage().nbytes()
        return result


def test_triton_on_a_cpu_is_refused():
    query, key, norms, rope, text = inputs()
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu: use backend 'chunked'"):
        operators.qk_norm_rope(query, key, *norms, rope, text, backend="triton")
