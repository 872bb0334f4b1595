"""Motion flow in Triton's interpreter, against the definition in float64."""

from mmap import mmap

import pytest
import torch
from flow_cases import (
    EPSILON,
    SHAPES,
    Shape,
    assert_within_budget,
    poison,
    use_tiles,
    video_tokens,
)

from ditflow_kernels import motion_flow
from ditflow_kernels.motion_flow import operators

PRECISIONS = pytest.mark.parametrize("precision", EPSILON, ids=str)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


def flow_and_gradients(query, key, grid, temperature, **options):
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    flow = motion_flow(query, key, grid, temperature, **options)
    weight = torch.arange(flow.numel()).view(flow.shape).cos().to(flow.dtype)
    return [flow.detach(), *torch.autograd.grad(flow, (query, key), weight)]


def assert_like_definition(query, key, grid, temperature, workspace_bytes=None):
    given = grid, temperature
    exact, plain = (
        flow_and_gradients(*tokens, *given, backend="reference")
        for tokens in [(query.double(), key.double()), (query, key)]
    )
    options = {"backend": "triton", "workspace_bytes": workspace_bytes}
    assert_within_budget(flow_and_gradients(query, key, *given, **options), plain, exact, query.dtype)


@PRECISIONS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_soft_flow_and_gradients(shape, precision, monkeypatch):
    use_tiles(monkeypatch, shape)
    assert_like_definition(*video_tokens(shape, precision), shape.grid, 2.0)


@PRECISIONS
@pytest.mark.parametrize("temperature", [0.1, 10.0, 50.0])
def test_temperatures(temperature, precision, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    assert_like_definition(*video_tokens(shape, precision), shape.grid, temperature)


@pytest.mark.parametrize("workspace_bytes", [0, 12_000], ids=["a_tile", "two_panels"])
def test_panels(workspace_bytes, monkeypatch):
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    assert_like_definition(*video_tokens(shape), shape.grid, 2.0, workspace_bytes)


def test_with_the_tiles_of_the_tuning_table():
    shape = Shape((3, 7, 9), 3, 16)
    assert_like_definition(*video_tokens(shape), shape.grid, 2.0)


def test_every_backend_saves_the_same_log2sumexp(monkeypatch):
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    tokens = video_tokens(shape)
    (_, ours), (_, plain) = (
        operators.soft_flow(*tokens, shape.grid, 2.0, backend, None) for backend in ("triton", "chunked")
    )
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@PRECISIONS
def test_large_logits_stay_finite(precision, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    query, key = (8 * tokens for tokens in video_tokens(shape, precision))
    for tensor in flow_and_gradients(query, key, shape.grid, 50.0, backend="triton"):
        assert tensor.isfinite().all()


def test_fp16_gradient_of_any_size(monkeypatch):
    """The range of fp16 limits only the last cast of the gradient."""
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape, torch.float16)
    query.requires_grad_()
    flow = motion_flow(query, key, shape.grid, 2.0, backend="triton")
    weight = torch.ones_like(flow)
    [whole] = torch.autograd.grad(flow, query, weight, retain_graph=True)
    [zero] = torch.autograd.grad(flow, query, 0 * weight, retain_graph=True)
    assert not zero.any() and whole.any()
    for size in (2.0**-9, 2.0**10):
        [sized] = torch.autograd.grad(flow, query, size * weight, retain_graph=True)
        torch.testing.assert_close(sized.float() / size, whole.float(), rtol=2e-3, atol=2**-15)


@PRECISIONS
@pytest.mark.parametrize("workspace_bytes", [0, None], ids=["a_tile", "one_panel"])
@pytest.mark.parametrize("name", ["odd_cells", "tall_queries", "many_frames_a_tile", "one_cell"])
def test_hard_flow(name, workspace_bytes, precision, monkeypatch):
    shape = SHAPES[name]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape, precision)
    options = {"hard": True, "workspace_bytes": workspace_bytes}
    flow = motion_flow(query, key, shape.grid, 2.0, backend="triton", **options)
    exact = motion_flow(query.double(), key.double(), shape.grid, 2.0, backend="reference", hard=True)
    assert torch.equal(flow.double(), exact)


def test_hard_flow_takes_the_lowest_index_within_and_across_tiles(monkeypatch):
    shape = Shape((2, 9, 11), 1, 16, (64, 32, 16))
    use_tiles(monkeypatch, shape)
    query, key = torch.ones(2, 2 * 99, 1, 16)
    tied = {0: [40, 41, 70, 98], 1: [97, 98]}  # cells by frame, within tiles and across them
    for frame, cells in tied.items():
        key[[99 * frame + cell for cell in cells]] = 2.0
    flow = motion_flow(query, key, shape.grid, 2.0, hard=True, backend="triton")
    index = torch.arange(99)
    for frame, (first, *_) in tied.items():
        expected = torch.stack([first % 11 - index % 11, first // 11 - index // 11], dim=-1).float()
        assert torch.equal(flow[:, frame], expected.expand(2, -1, -1))
    everywhere = motion_flow(query, torch.ones_like(key), shape.grid, 2.0, hard=True, backend="triton")
    assert torch.equal(everywhere[0, 1], -torch.stack([index % 11, index // 11], dim=-1).float())


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_strided_tokens(hard, monkeypatch):
    """Views as attention makes them: rows far apart, or heads first (which is copied)."""
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape)
    expected = motion_flow(query, key, shape.grid, 2.0, hard=hard, backend="triton")
    fused = torch.stack([query, key], dim=1)
    apart = motion_flow(*fused.unbind(1), shape.grid, 2.0, hard=hard, backend="triton")
    heads_first = (tokens.transpose(0, 1).contiguous().transpose(0, 1) for tokens in (query, key))
    turned = motion_flow(*heads_first, shape.grid, 2.0, hard=hard, backend="triton")
    assert torch.equal(apart, expected) and torch.equal(turned, expected)


def test_rows_beyond_two_billion_elements(monkeypatch):
    """The last rows of queries and keys begin beyond 2^31 elements; untouched pages take no memory."""
    shape = Shape((2, 3, 4), 2, 16, (16, 16, 16))
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape, torch.float16)
    tokens, stride = len(query), 2**31 // (len(query) - 2) // 16 * 16
    sparse = torch.frombuffer(mmap(-1, 2 * tokens * stride), dtype=torch.float16)
    far_query, far_key = (sparse[at:].as_strided(query.shape, (stride, 16, 1)) for at in (0, 4096))
    assert (tokens - 1) * far_query.stride(0) > 2**31
    far_query.copy_(query)
    far_key.copy_(key)
    for hard in (False, True):
        flow, far = (
            motion_flow(*pair, shape.grid, 2.0, hard=hard, backend="triton")
            for pair in [(query, key), (far_query, far_key)]
        )
        assert torch.equal(far, flow)


def test_operators_are_what_torch_expects(monkeypatch):
    shape = Shape((2, 3, 4), 2, 16)
    use_tiles(monkeypatch, shape)
    monkeypatch.undo()  # opcheck compares tensors, and NaN differs from itself
    query, key = video_tokens(shape)
    settings = shape.grid, 2.0, "triton", None
    torch.library.opcheck(operators.hard_flow, (query, key, shape.grid, "triton", None))
    flow, log2sumexp = operators.soft_flow(query, key, *settings)
    torch.library.opcheck(
        operators.flow_gradients, (torch.randn_like(flow), query, key, flow, log2sumexp, *settings)
    )
    torch.library.opcheck(operators.soft_flow, (query.requires_grad_(), key.requires_grad_(), *settings))
