"""The motion flow loss in Triton's interpreter: values and gradients against the definition in float64."""

import pytest
import torch
from flow_cases import (
    EPSILON,
    SHAPES,
    Shape,
    assert_within_budget,
    poison,
    reference_flow,
    reference_for,
    use_tiles,
    video_tokens,
    with_free_rows,
)

from ditflow_kernels import motion_flow, motion_flow_loss
from ditflow_kernels.motion_flow import operators
from ditflow_kernels.motion_flow.triton.activity import activity
from ditflow_kernels.motion_flow.triton.tiled_operands import TiledOperands

PRECISIONS = pytest.mark.parametrize("precision", EPSILON, ids=str)
ROWS = pytest.mark.parametrize("rows", ["moving", "given", "all"])
PANELS = pytest.mark.parametrize("workspace_bytes", [0, None], ids=["a_tile", "one_panel"])


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


def loss_and_gradients(query, key, reference, grid, temperature, **options):
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    loss = motion_flow_loss(query, key, reference, grid, temperature, **options)
    return [loss.detach(), *torch.autograd.grad(loss, (query, key))]


def assert_like_definition(tokens, reference, grid, rows, temperature=2.0, workspace_bytes=None):
    given = reference, grid, temperature
    exact, plain = (
        loss_and_gradients(*pair, *given, rows=rows, backend="reference")
        for pair in [[part.double() for part in tokens], tokens]
    )
    options = {"rows": rows, "backend": "triton", "workspace_bytes": workspace_bytes}
    actual = loss_and_gradients(*tokens, *given, **options)
    # in plain fp16 the factor 1 / count makes gradients vanish: compare with float32
    if tokens[0].dtype == torch.float16:
        single = loss_and_gradients(*(part.float() for part in tokens), *given, rows=rows)
        plain = [part.to(ours) for part, ours in zip(single, actual, strict=True)]
    assert_within_budget(actual, plain, exact, tokens[0].dtype)


@ROWS
@PRECISIONS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradients(shape, precision, rows, monkeypatch):
    use_tiles(monkeypatch, shape)
    assert_like_definition(video_tokens(shape, precision), reference_for(rows, shape), shape.grid, rows)


@PRECISIONS
@pytest.mark.parametrize("temperature", [0.1, 10.0, 50.0])
def test_temperatures(temperature, precision, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    tokens, reference = video_tokens(shape, precision), reference_flow(shape)
    assert_like_definition(tokens, reference, shape.grid, "moving", temperature)


@ROWS
@pytest.mark.parametrize("workspace_bytes", [0, 50_000], ids=["a_tile", "two_panels"])
def test_panels(workspace_bytes, rows, monkeypatch):
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    tokens, reference = video_tokens(shape), reference_for(rows, shape)
    assert_like_definition(tokens, reference, shape.grid, rows, workspace_bytes=workspace_bytes)


@PANELS
@pytest.mark.parametrize("rows, uncounted", [("moving", 0.0), ("given", torch.nan)])
def test_one_row_counts(rows, uncounted, workspace_bytes, monkeypatch):
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape)
    reference = torch.full_like(reference_flow(shape), uncounted)
    reference[1, 2, 20] = torch.tensor([0.0, -1.5])
    given = reference, shape.grid
    assert_like_definition((query, key), *given, rows, workspace_bytes=workspace_bytes)
    options = {"rows": rows, "backend": "triton", "workspace_bytes": workspace_bytes}
    _, grad_query, grad_key = loss_and_gradients(query, key, *given, 2.0, **options)
    assert grad_query.flatten(1).any(dim=1).nonzero().flatten().tolist() == [35 + 20]
    assert not grad_key[: 2 * 35].any() and grad_key[2 * 35 :].any()


@PRECISIONS
@PANELS
@pytest.mark.parametrize("rows, value", [("moving", 0.0), ("moving", torch.nan), ("given", torch.nan)])
def test_no_row_counts(rows, value, workspace_bytes, precision, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    tokens = video_tokens(shape, precision)
    given = torch.full_like(reference_flow(shape), value), shape.grid, 2.0
    options = {"rows": rows, "backend": "triton", "workspace_bytes": workspace_bytes}
    for tensor in loss_and_gradients(*tokens, *given, **options):
        assert torch.equal(tensor, torch.zeros_like(tensor))
    assert motion_flow_loss(*tokens, *given, **options) == 0


@PRECISIONS
@PANELS
@pytest.mark.parametrize("frames", [((1, 2),), ((0, 0), (0, 1), (0, 2)), ((0, 1), (1, 1), (2, 1))], ids=str)
def test_whole_tiles_are_free(frames, workspace_bytes, precision, monkeypatch):
    """Every row is free but those of some pairs of a query frame and a key frame."""
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    reference, tokens = reference_flow(shape), video_tokens(shape, precision)
    free = torch.ones(3, 3, 1, 1, dtype=torch.bool)
    for pair in frames:
        free[pair] = False
    given = reference.masked_fill(free, torch.nan), shape.grid, "given"
    assert_like_definition(tokens, *given, workspace_bytes=workspace_bytes)


def test_tiles_without_a_row_that_counts_are_known(monkeypatch):
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    operands = TiledOperands.of(*video_tokens(shape), shape.grid, 2.0, launch=True)
    reference = torch.full_like(reference_flow(shape), torch.nan)
    reference[0, 2, 3] = reference[1, 0, 34] = 0.0  # tokens 3 and 69, in tiles 0 and 2 of 32
    reference[2, 1, 30, 0] = 1.0  # y is NaN
    active = torch.empty(4, 3, dtype=torch.int32)
    activity(operands, reference, active)
    assert active.nonzero().tolist() == [[0, 2], [2, 0]] and active.max() == 1


@PANELS
def test_rows_that_are_free_do_not_move(workspace_bytes, monkeypatch):
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    tokens, reference = video_tokens(shape), with_free_rows(reference_flow(shape))
    assert_like_definition(tokens, reference, shape.grid, "moving", workspace_bytes=workspace_bytes)


def test_every_row_counts_even_if_it_is_nan(monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    given = with_free_rows(reference_flow(shape)), shape.grid, 2.0
    loss, *_ = loss_and_gradients(*video_tokens(shape), *given, rows="all", backend="triton")
    assert loss.isnan()


@ROWS
def test_same_value_without_gradients(rows, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    given = *video_tokens(shape), reference_for(rows, shape), shape.grid, 2.0
    options = {"rows": rows, "backend": "triton"}
    with_gradients, *_ = loss_and_gradients(*given, **options)
    torch.testing.assert_close(motion_flow_loss(*given, **options), with_gradients)


@PRECISIONS
def test_large_logits_stay_finite(precision, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    tokens = (8 * part for part in video_tokens(shape, precision))
    for tensor in loss_and_gradients(*tokens, reference_flow(shape), shape.grid, 50.0, backend="triton"):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("rows", ["moving", "given"])
def test_fp16_gradients_towards_a_far_reference_do_not_overflow(rows, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape, torch.float16)
    given = 3e4 * reference_for(rows, shape), shape.grid, 2.0
    _, *exact = loss_and_gradients(query.double(), key.double(), *given, rows=rows, backend="reference")
    _, *unscaled, factor = operators.loss_and_gradients(query, key, *given, rows, "triton", None)
    for ours, truth in zip(unscaled, exact, strict=True):
        error = (ours * factor).view_as(truth).double() - truth
        assert error.norm() < 5e-3 * truth.norm()


def test_fp16_gradients_of_a_real_count_of_rows_do_not_underflow(monkeypatch):
    """A frame of 30 x 45 patches and flow near the reference: with a loss scale, gradients survive."""
    shape = Shape((1, 30, 45), 2, 16, (512, 512, 32))
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape, torch.float16)
    near = motion_flow(query, key, shape.grid, 2.0, backend="chunked") + 1e-3 * reference_flow(shape)
    given = near, shape.grid, 2.0
    _, *exact = loss_and_gradients(query.float(), key.float(), *given, backend="chunked")
    leaves = query.requires_grad_(), key.requires_grad_()
    loss = motion_flow_loss(*leaves, *given, backend="triton")
    for held, truth in zip(torch.autograd.grad(2.0**16 * loss, leaves), exact, strict=True):
        assert (held.float() / 2**16 - truth).norm() < 5e-3 * truth.norm()


@pytest.mark.parametrize("what", ["loss", "flow"])
@PANELS
def test_fp16_query_gradients_with_a_common_offset_of_all_keys(workspace_bytes, what, monkeypatch):
    """Rounded, a row of the logits' gradient does not sum to zero: times the offset, that was 0.2 % of dQ."""
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape)
    tokens, reference = (query.half(), (key + 10).half()), reference_flow(shape)

    def grad_query(query, key, **options):
        query = query.clone().requires_grad_()
        options["workspace_bytes"] = workspace_bytes
        if what == "loss":
            result = 2.0**10 * motion_flow_loss(query, key, reference, shape.grid, 2.0, **options)
        else:
            result = (motion_flow(query, key, shape.grid, 2.0, **options) * reference).sum()
        return torch.autograd.grad(result, query)[0].double()

    exact = grad_query(*(each.double() for each in tokens), backend="reference")
    error = grad_query(*tokens, backend="triton") - exact
    assert error.norm() < 0.001 * exact.norm()


def test_operator_is_what_torch_expects(monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    query, key = (tokens.requires_grad_() for tokens in video_tokens(shape))
    given = reference_flow(shape), shape.grid, 2.0, "moving", "triton", None
    torch.library.opcheck(operators.loss_and_gradients, (query, key, *given))
