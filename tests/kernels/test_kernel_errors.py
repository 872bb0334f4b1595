"""The errors of the public functions, and what importing them loads."""

import subprocess
import sys

import pytest
import torch

from ditflow_kernels import int8_linear, motion_flow, motion_flow_loss, qk_norm_rope, quantise_weight

TOKENS = torch.zeros(12, 2, 8)
GRID = (2, 2, 3)
REFERENCE = torch.zeros(2, 2, 6, 2)
BATCH = torch.zeros(1, 15, 2, 8)
ROPE = torch.zeros(2, 2, 12, 8)
NORM = (torch.ones(8), torch.zeros(8), 1e-6)
RMS_NORM = (torch.ones(16), None, 1e-6)
X = torch.zeros(2, 3, 8)
WEIGHT = torch.zeros(4, 8, dtype=torch.int8)


def flow(query=TOKENS, key=TOKENS, grid=GRID, **options):
    return motion_flow(query, key, grid, 2.0, **options)


def loss(reference=REFERENCE, **options):
    return motion_flow_loss(TOKENS, TOKENS, reference, GRID, 2.0, **options)


def prepare(query=BATCH, key=BATCH, norm_query=NORM, norm_key=None, rope=ROPE, text_length=3):
    return qk_norm_rope(query, key, norm_query, norm_key, rope, text_length)


def linear(x=X, weight=WEIGHT, scale=torch.ones(4), bias=None, **options):  # noqa: B008
    return int8_linear(x, weight, scale, bias, **options)


REFUSED = {
    "backend": (
        lambda: flow(backend="fast"),
        r"unknown backend 'fast': use 'auto' or one of 'reference', 'chunked'",
    ),
    "grid": (lambda: flow(grid=(2, 2, 2)), r"grid \(2, 2, 2\) .* product of 12 video tokens"),
    "grid_length": (lambda: flow(grid=(2, 6)), r"grid \(2, 6\) must be \(frames, height, width\)"),
    "grid_sign": (lambda: flow(grid=(2, -2, -3)), r"grid \(2, -2, -3\)"),
    "flow_shapes": (lambda: flow(key=TOKENS[1:]), r"share one shape \[S, .*\[12, 2, 8\], \[11, 2, 8\]"),
    "flow_dtypes": (lambda: flow(key=TOKENS.half()), r"share one dtype .* torch.float32 .* torch.float16"),
    "float64": (lambda: flow(TOKENS.double(), TOKENS.double()), r"'chunked' does not take torch.float64"),
    "integers": (lambda: flow(TOKENS.int(), TOKENS.int(), backend="reference"), r"does not take torch.int32"),
    "reference": (lambda: loss(REFERENCE[:1]), r"reference \[1, 2, 6, 2\] must be \[2, 2, 6, 2\]"),
    "rows": (lambda: loss(rows="some"), r"unknown rows 'some': use one of 'moving', 'given', 'all'"),
    "prepare_shapes": (lambda: prepare(key=BATCH[:, 1:]), r"query and key must share one shape"),
    "prepare_dtypes": (lambda: prepare(key=BATCH.half()), r"query and key must share one dtype"),
    "prepare_text": (lambda: prepare(text_length=-1), r"text_length -1"),
    "prepare_text_too_long": (lambda: prepare(text_length=16), r"text_length 16 .* 15 tokens"),
    "prepare_rope": (lambda: prepare(rope=ROPE[:, :, 1:]), r"rope \[2, 2, 11, 8\] must be \[2, 2, 12, 8\]"),
    "prepare_norm": (
        lambda: prepare(norm_query=(NORM[0][1:], NORM[1], 1e-6)),
        r"norm_query must be .* \[8\]",
    ),
    "prepare_rms_norm": (
        lambda: prepare(norm_query=(NORM[0], None, 1e-6)),
        r"norm_query without a bias must have a weight of shape \[16\], for all heads together, not \[8\]",
    ),
    "prepare_two_kinds": (
        lambda: prepare(norm_key=RMS_NORM),
        r"only one of norm_query and norm_key has a bias: use two norms of one kind",
    ),
    "linear_weight": (
        lambda: linear(weight=torch.zeros(4, 8)),
        r"weight_int8 must be \[out, in\] torch.int8, not \[4, 8\] torch.float32: see quantise_weight",
    ),
    "linear_x": (lambda: linear(X[..., 1:]), r"x \[2, 3, 7\] must be \[\.\.\., 8\]"),
    "linear_scale": (lambda: linear(scale=torch.ones(4, 1)), r"scale \[4, 1\] must be \[4\]"),
    "linear_bias": (lambda: linear(bias=torch.ones(3)), r"bias \[3\] must be \[4\]"),
    "linear_device": (lambda: linear(bias=torch.ones(4, device="meta")), r"bias is on meta, x on cpu"),
    "linear_activation": (
        lambda: linear(activation="gelu"),
        r"unknown activation 'gelu': use one of None, 'gelu_tanh'",
    ),
    "linear_too_long": (
        lambda: linear(X[..., :1], WEIGHT[:1, :1].expand(131_072, 1), torch.ones(131_072)),
        r"weight_int8 \[131072, 1\] must have sides of at most 131071: sums are in int32",
    ),
    "linear_integers": (lambda: linear(X.int()), r"does not take torch.int32"),
    "quantise_shape": (lambda: quantise_weight(X), r"weight \[2, 3, 8\] torch.float32 must be a matrix"),
    "quantise_integers": (lambda: quantise_weight(WEIGHT), r"weight \[4, 8\] torch.int8 must be a matrix"),
}


@pytest.mark.parametrize("call, words", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_accepted():
    """Without their one change, the arguments of the cases above are accepted."""
    for call in (flow, loss, prepare, linear):
        call()
    prepare(norm_query=RMS_NORM, norm_key=RMS_NORM)


def test_import_loads_neither_torch_nor_a_backend():
    code = """if True:
        import sys, ditflow_kernels
        for name in ("int8_linear", "motion_flow", "qk_norm_rope", "quantise_weight"):
            assert callable(getattr(ditflow_kernels, name))
        assert not {"torch", "triton"} & set(sys.modules)
        assert not any(name.endswith(("chunked", "reference")) for name in sys.modules)
        import ditflow_kernels.motion_flow.chunked
        assert callable(ditflow_kernels.motion_flow)"""
    subprocess.run([sys.executable, "-c", code], check=True)
