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
    use_tiles,
    video_tokens,
)

from ditflow_kernels import motion_flow, motion_flow_loss
from ditflow_kernels.motion_flow import operators

PRECISIONS = pytest.mark.parametrize("precision", EPSILON, ids=str)
ROWS = pytest.mark.parametrize("rows", ["moving", "all"])


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
    assert_like_definition(video_tokens(shape, precision), reference_flow(shape), shape.grid, rows)


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
    tokens, reference = video_tokens(shape), reference_flow(shape)
    assert_like_definition(tokens, reference, shape.grid, rows, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("workspace_bytes", [0, None], ids=["a_tile", "one_panel"])
def test_one_row_counts(workspace_bytes, monkeypatch):
    shape = SHAPES["odd_cells"]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape)
    reference = torch.zeros_like(reference_flow(shape))
    reference[1, 2, 20] = torch.tensor([0.0, -1.5])
    given = reference, shape.grid
    assert_like_definition((query, key), *given, "moving", workspace_bytes=workspace_bytes)
    options = {"backend": "triton", "workspace_bytes": workspace_bytes}
    _, grad_query, grad_key = loss_and_gradients(query, key, *given, 2.0, **options)
    assert grad_query.flatten(1).any(dim=1).nonzero().flatten().tolist() == [35 + 20]
    assert not grad_key[: 2 * 35].any() and grad_key[2 * 35 :].any()


@PRECISIONS
@pytest.mark.parametrize("workspace_bytes", [0, None], ids=["a_tile", "one_panel"])
def test_no_row_counts(workspace_bytes, precision, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    tokens = video_tokens(shape, precision)
    reference = torch.zeros_like(reference_flow(shape))
    options = {"backend": "triton", "workspace_bytes": workspace_bytes}
    for tensor in loss_and_gradients(*tokens, reference, shape.grid, 2.0, **options):
        assert torch.equal(tensor, torch.zeros_like(tensor))


@ROWS
def test_same_value_without_gradients(rows, monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    given = *video_tokens(shape), reference_flow(shape), shape.grid, 2.0
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


def test_fp16_gradients_towards_a_far_reference_do_not_overflow(monkeypatch):
    shape = SHAPES["many_frames_a_tile"]
    use_tiles(monkeypatch, shape)
    query, key = video_tokens(shape, torch.float16)
    given = 3e4 * reference_flow(shape), shape.grid, 2.0
    _, *exact = loss_and_gradients(query.double(), key.double(), *given, backend="reference")
    _, *unscaled, factor = operators.loss_and_gradients(query, key, *given, "moving", "triton", None)
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
@pytest.mark.parametrize("workspace_bytes", [0, None], ids=["a_tile", "one_panel"])
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
