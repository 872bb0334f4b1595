"""Motion flow and its gradients against the definition in float64."""

import pytest
import torch
from kernel_cases import DEVICES, PRECISIONS, SHAPES, assert_within_budget, video_tokens

from ditflow_kernels import motion_flow
from ditflow_kernels.motion_flow import operators


def flow_and_gradients(function, query, key, grid, temperature, **options):
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    flow = function(query, key, grid, temperature, **options)
    weight = torch.arange(flow.numel(), device=flow.device, dtype=flow.dtype).view(flow.shape).cos()
    return [flow.detach(), *torch.autograd.grad((flow * weight).sum(), (query, key))]


def assert_flow_within_budget(shape, precision, temperature, device="cpu", **options):
    query, key = (tokens.to(precision) for tokens in video_tokens(shape, device))
    arguments = shape.grid, temperature
    exact = flow_and_gradients(motion_flow, query.double(), key.double(), *arguments, backend="reference")
    plain = flow_and_gradients(motion_flow, query, key, *arguments, backend="reference")
    actual = flow_and_gradients(motion_flow, query, key, *arguments, backend="chunked", **options)
    assert_within_budget(actual, plain, exact, precision, max(1.0, temperature / 10))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, precision, device):
    assert_flow_within_budget(shape, precision, 2.0, device)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("temperature", [0.1, 10.0, 50.0])
def test_temperatures(temperature, precision):
    assert_flow_within_budget(SHAPES["odd_cells"], precision, temperature)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("budget", [1, 100_000])
def test_many_chunks(budget, precision):
    assert_flow_within_budget(SHAPES["odd_cells"], precision, 2.0, workspace_bytes=budget)


def test_the_saved_log2sumexp_is_in_base_2():
    shape = SHAPES["odd_cells"]
    (frames, height, width), channels = shape.grid, shape.heads * shape.head_dim
    query, key = (tokens.float() for tokens in video_tokens(shape))
    _, log2sumexp = operators.soft_flow(query, key, shape.grid, 2.0, "chunked", None)
    logits = query.double().flatten(1) @ key.double().flatten(1).T * 2 * shape.head_dim**0.5 / channels
    rows = logits.view(frames, height * width, frames, height * width).transpose(1, 2)
    torch.testing.assert_close(log2sumexp.double(), rows.exp().sum(dim=-1).log2(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_large_logits_stay_finite(precision):
    shape = SHAPES["odd_cells"]
    query, key = (25 * tokens.to(precision) for tokens in video_tokens(shape))
    for tensor in flow_and_gradients(motion_flow, query, key, shape.grid, 50.0, backend="chunked"):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("size", [2.0**-9, 2.0**13])
@pytest.mark.parametrize("device", DEVICES)
def test_fp16_gradient_of_any_size(device, size):
    """The range of fp16 limits only the last cast of the gradient."""
    shape = SHAPES["odd_cells"]
    query, key = (tokens.half().requires_grad_() for tokens in video_tokens(shape, device))
    flow = motion_flow(query, key, shape.grid, 2.0, backend="chunked")
    weight = torch.ones_like(flow)
    [whole] = torch.autograd.grad(flow, query, weight, retain_graph=True)
    [sized] = torch.autograd.grad(flow, query, size * weight)
    torch.testing.assert_close(sized.float() / size, whole.float(), rtol=2e-3, atol=2**-15)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_hard_flow_finds_the_matching_cell(precision, backend):
    """The pattern only shifts from frame to frame, so the match of every cell is known."""
    frames, height, width = grid = (3, 6, 8)
    pattern = torch.randn(height, width, 2, 64, generator=torch.Generator().manual_seed(0)).to(precision)
    tokens = torch.stack([pattern.roll((frame, -2 * frame), dims=(0, 1)) for frame in range(frames)]).flatten(
        0, 2
    )
    flow = motion_flow(tokens, tokens, grid, 2.0, hard=True, backend=backend)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for of_query in range(frames):
        for of_key in range(frames):
            apart = of_key - of_query
            moved = torch.stack([(x - 2 * apart) % width - x, (y + apart) % height - y], dim=-1)
            assert torch.equal(flow[of_query, of_key], moved.flatten(0, 1).float())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_hard_flow_takes_the_lowest_index_of_a_tie(backend, device):
    query = torch.ones(24, 2, 16, device=device, requires_grad=True)
    key = torch.zeros(24, 2, 16, device=device)
    key[[5, 7, 10, 21, 22]] = 1.0  # cells 5, 7, 10 of frame 0 and 9, 10 of frame 1, four to a row
    flow = motion_flow(query, key, (2, 3, 4), 2.0, hard=True, backend=backend)
    assert flow[0, 0, 0].tolist() == [1, 1] and flow[0, 1, 0].tolist() == [1, 2]
    assert flow[1, 0, 11].tolist() == [-2, -1] and flow[1, 1, 11].tolist() == [-2, 0]
    assert not flow.requires_grad


def test_hard_flow_of_bf16_is_decided_in_float32():
    """Rounded to bf16 these logits would tie, and the lower index would win."""
    query = torch.ones(2, 1, 256, dtype=torch.bfloat16)
    key = torch.ones(2, 1, 256, dtype=torch.bfloat16)
    key[1, 0, 0] = 1.0078125
    flow = motion_flow(query, key, (1, 1, 2), 2.0, hard=True, backend="chunked")
    assert flow[0, 0, :, 0].tolist() == [1, 0]
