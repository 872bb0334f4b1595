"""Motion flow as torch operators: opcheck, compile, gradients, FLOPs, fake tensors, choice of backend."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ditflow_kernels import motion_flow, motion_flow_loss, qk_norm_rope
from ditflow_kernels.backends import FASTEST, as_on, check_triton_device, choose
from ditflow_kernels.motion_flow import operators

GRID, HEADS, HEAD_DIM = (3, 4, 5), 2, 16
TOKENS = 60
PRODUCT = 2 * TOKENS**2 * HEADS * HEAD_DIM
PRECISIONS = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def tokens(precision=torch.float32):
    return [torch.randn(TOKENS, HEADS, HEAD_DIM).to(precision).requires_grad_() for _ in range(2)]


def partly_still():
    reference = torch.randn(3, 3, 20, 2)
    reference[1] = 0
    return reference


@PRECISIONS
def test_operators_are_what_torch_expects(precision):
    query, key = tokens(precision)
    settings = GRID, 2.0, "chunked", None
    torch.library.opcheck(operators.soft_flow, (query, key, *settings))
    torch.library.opcheck(
        operators.loss_and_gradients,
        (query, key, partly_still(), GRID, 2.0, "moving", "chunked", 20_000),
    )
    query, key = query.detach(), key.detach()
    torch.library.opcheck(operators.hard_flow, (query, key, GRID, "chunked", None))
    flow, log2sumexp = operators.soft_flow(query, key, *settings)
    grad = torch.randn_like(flow)
    torch.library.opcheck(operators.flow_gradients, (grad, query, key, flow, log2sumexp, *settings))
    loss, grad_query, grad_key, factor = operators.loss_and_gradients(
        query, key, partly_still(), GRID, 2.0, "all", "chunked", None
    )
    scaling = loss, grad_query, grad_key, factor, query.shape, precision
    torch.library.opcheck(operators.scaled_gradients, scaling)


class GuidedBlock(nn.Module):
    """From hidden states to the loss, as in a model's guided block."""

    def __init__(self):
        super().__init__()
        self.to_query, self.to_key = (nn.Linear(24, HEADS * HEAD_DIM) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(HEAD_DIM) for _ in range(2))
        self.register_buffer("rope", torch.randn(2, 2, TOKENS, HEAD_DIM))
        self.register_buffer("reference", partly_still())

    def forward(self, hidden):  # [1, text + video, 24]
        query, key = (
            layer(hidden).unflatten(-1, (HEADS, HEAD_DIM)) for layer in (self.to_query, self.to_key)
        )
        norms = [(norm.weight, norm.bias, norm.eps) for norm in self.norms]
        query, key = qk_norm_rope(query, key, *norms, self.rope, 4)
        loss = motion_flow_loss(query[0, 4:], key[0, 4:], self.reference, GRID, 2.0)
        flow = motion_flow(query[0, 4:], key[0, 4:], GRID, 2.0)
        return loss + flow.square().mean()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph_with_its_gradients(backend):
    module, hidden = GuidedBlock(), torch.randn(1, 4 + TOKENS, 24, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    expected, traced = module(hidden), compiled(hidden)
    torch.testing.assert_close(traced, expected)
    [expected], [traced] = (torch.autograd.grad(loss, hidden) for loss in (expected, traced))
    torch.testing.assert_close(traced, expected)
    assert expected.any()


def test_compiles_the_hard_flow_of_the_reference_pass():
    query, key = (part.detach() for part in tokens())
    compiled = torch.compile(motion_flow, fullgraph=True, backend="aot_eager")
    assert torch.equal(
        compiled(query, key, GRID, 2.0, hard=True), motion_flow(query, key, GRID, 2.0, hard=True)
    )


def test_a_second_derivative_is_refused():
    query, key = tokens()
    loss = motion_flow_loss(query, key, partly_still(), GRID, 2.0)
    [grad] = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), key)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_counts_products(backend):
    """One product for a flow, three for its gradients, three for the loss and its gradients together."""
    options = {"backend": backend}
    with FakeTensorMode():
        query, key = tokens()
        with FlopCounterMode(display=False) as counter:
            motion_flow(query, key, GRID, 2.0, hard=True, **options)
            flow = motion_flow(query, key, GRID, 2.0, **options)
            assert counter.get_total_flops() == 2 * PRODUCT
            torch.autograd.grad(flow.sum(), (query, key))
            assert counter.get_total_flops() == 5 * PRODUCT
            loss = motion_flow_loss(query, key, torch.empty(3, 3, 20, 2), GRID, 2.0, **options)
            torch.autograd.grad(loss, (query, key))
            assert counter.get_total_flops() == 8 * PRODUCT


@pytest.mark.parametrize("workspace_bytes", [1, 30_000])
def test_workspace_bytes_changes_memory_not_results(workspace_bytes):
    query, key = tokens()
    given = query, key, partly_still(), GRID, 2.0
    torch.testing.assert_close(
        motion_flow_loss(*given, workspace_bytes=workspace_bytes), motion_flow_loss(*given)
    )
    torch.testing.assert_close(
        motion_flow(query, key, GRID, 2.0, workspace_bytes=workspace_bytes),
        motion_flow(query, key, GRID, 2.0),
    )


def test_auto_is_triton_on_cuda_and_chunked_elsewhere():
    for device, backend in [("cuda", "triton"), ("cpu", "chunked"), ("mps", "chunked")]:
        assert choose("auto", torch.device(device), torch.bfloat16) == backend


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as torch reports; call it with its compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def present(major, minor):
        found = SimpleNamespace(major=major, minor=minor)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)

    return present


@pytest.mark.parametrize("capability, backend", [((7, 5), "chunked"), ((8, 0), "triton"), ((9, 0), "triton")])
def test_auto_is_triton_from_compute_capability_8(capability, backend, gpu):
    gpu(*capability)
    assert choose("auto", torch.device("cuda"), torch.float16) == backend
    before = dict(FASTEST)
    with as_on("cuda"):
        assert choose("auto", torch.device("cpu"), torch.float16) == backend
    assert before == FASTEST


def test_triton_on_an_older_gpu_is_refused(gpu):
    device = torch.device("cuda", 0)
    gpu(7, 5)
    words = "needs a GPU of compute capability 8.0 or later, and cuda:0 has 7.5: use backend 'chunked'"
    with pytest.raises(ValueError, match=words) as caught:
        check_triton_device(device)
    assert "\n" not in str(caught.value)
    gpu(8, 0)
    check_triton_device(device)


def test_triton_on_a_cpu_is_refused():
    query, key = tokens()
    with pytest.raises(
        ValueError, match="backend 'triton' needs a CUDA device, not cpu: use backend 'chunked'"
    ):
        motion_flow(query, key, GRID, 2.0, backend="triton")
