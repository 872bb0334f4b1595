"""The launchers of each operation, with example arguments."""

from functools import partial
from itertools import product
from math import prod

import torch

from bench.gates.resources import Case
from ditflow_kernels.int8_linear.triton import int8_linear_backward, int8_linear_forward
from ditflow_kernels.motion_flow.triton import flow_gradients, hard_flow, loss_and_gradients, soft_flow
from ditflow_kernels.qk_norm_rope.layout import Wanted
from ditflow_kernels.qk_norm_rope.triton import qk_norm_rope_backward, qk_norm_rope_forward

TEXT = 226  # tokens of a prompt
GRID = 6, 30, 45  # of 24 frames of 480 x 720
# the same kernels must serve all of these: 49 frames, and 256 x 384, whose cells are a multiple of 16
GRIDS = GRID, (13, 30, 45), (6, 16, 24)
WAN_HEADS = {"wan-1.3b": 12, "wan-5b": 24, "wan-14b": 40}  # of 128 channels


def cases() -> list[Case]:
    return [*qk_norm_rope_cases(), *motion_flow_cases(), *int8_linear_cases()]


def qk_norm_rope_cases() -> list[Case]:
    """5B at 24 frames, 2B, which has no rotation, float32 with wide heads, and Wan's norm of all heads."""
    big = {"heads": 48, "head_dim": 64, "dtype": torch.bfloat16}
    small = {"heads": 30, "head_dim": 64, "dtype": torch.float16, "rotary": False}
    exact = {"heads": 12, "head_dim": 128, "dtype": torch.float32}
    wan = {"head_dim": 128, "dtype": torch.bfloat16, "text": 0, "together": True}
    wan_exact = wan | {"dtype": torch.float32}
    return [
        Case("preparation-5b", lambda: prepare(**big)),
        Case("preparation-5b-embedding", lambda: prepare(**big, embedding=True)),
        Case("preparation-2b", lambda: prepare(**small)),
        Case("preparation-float32", lambda: prepare(**exact, embedding=True)),
        *(Case(f"preparation-{name}", partial(prepare, heads, **wan)) for name, heads in WAN_HEADS.items()),
        Case("preparation-wan-14b-embedding", lambda: prepare(40, **wan, embedding=True)),
        Case("preparation-wan-float32", lambda: prepare(40, **wan_exact, embedding=True)),
    ]


def prepare(heads, head_dim, dtype, text=TEXT, rotary=True, embedding=False, together=False):
    """`together`: an RMS norm of all heads."""
    video = prod(GRID)
    query, key, grad_query, grad_key = torch.empty(4, 1, text + video, heads, head_dim, dtype=dtype)
    weight, bias = torch.empty(2, head_dim, dtype=dtype)
    norm = (torch.empty(heads * head_dim, dtype=dtype), None, 1e-6) if together else (weight, bias, 1e-6)
    rope = torch.empty(2, 2, video, head_dim) if rotary else None
    given = query, key, norm, norm, rope, text
    qk_norm_rope_forward(*given)
    qk_norm_rope_backward(grad_query, grad_key, *given, Wanted(query=True, key=True, rope=embedding))


def motion_flow_cases() -> list[Case]:
    """5B in bf16 and in float32, whose tiles differ; Wan; the loss of 2B in float16. Each at every grid.

    24 heads of 128 are as many channels as 48 of 64: one binary must serve both.
    """
    wide = [(48, 64), (24, 128)]
    kinds = {
        "5b": (wide, torch.bfloat16),
        "float32": (wide, torch.float32),
        "wan-1.3b": ([(12, 128)], torch.bfloat16),
        "wan-14b": ([(40, 128)], torch.bfloat16),
    }
    cases = [
        Case(f"{what.__name__}-{kind}".replace("_", "-"), partial(at_every_grid, what, *kinds[kind]))
        for what in (flow, hard, flow_backward, loss)
        for kind in kinds
    ]
    return [*cases, Case("loss-2b", partial(at_every_grid, loss, [(30, 64)], torch.float16))]


def at_every_grid(what, widths, dtype):
    for grid, (heads, head_dim) in product(GRIDS, widths):
        what(*queries_and_keys(grid, heads, head_dim, dtype), grid)


def flow(query, key, grid):
    soft_flow(query, key, grid, 2.0, None)


def hard(query, key, grid):
    hard_flow(query, key, grid, None)


def flow_backward(query, key, grid):
    frames, height, width = grid
    grad, flow = torch.empty(2, frames, frames, height * width, 2)
    log2sumexp = torch.empty(frames, frames, height * width)
    flow_gradients(grad, query, key, flow, log2sumexp, grid, 2.0, None)


def loss(query, key, grid):
    frames, height, width = grid
    reference = torch.empty(frames, frames, height * width, 2)
    loss_and_gradients(query, key, reference, grid, 2.0, "moving", None)


def queries_and_keys(grid, heads, head_dim, dtype):
    """Video tokens as a block passes them on: a slice after the text in one tensor of both."""
    prepared = torch.empty(2, TEXT + prod(grid), heads, head_dim, dtype=dtype)
    return prepared[0, TEXT:], prepared[1, TEXT:]


def int8_linear_cases() -> list[Case]:
    """5B's wide layer with GELU and its narrow one, forward and backward; 2B's wide layer in float16."""
    wide, narrow = (3072, 12288, torch.bfloat16, "gelu_tanh"), (12288, 3072, torch.bfloat16, None)
    small = 1920, 7680, torch.float16, "gelu_tanh"
    layers = {"wide-5b": wide, "narrow-5b": narrow, "wide-2b": small}
    return [
        Case(f"int8-{what.__name__}-{name}".replace("_", "-"), partial(what, *layer))
        for name, layer in layers.items()
        for what in (linear_forward, linear_backward)
    ]


def linear_forward(inputs, outputs, dtype, activation):
    x, bias = torch.empty(TEXT + prod(GRID), inputs, dtype=dtype), torch.empty(outputs, dtype=dtype)
    weight, scale = torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs)
    int8_linear_forward(x, weight, scale, bias, activation, keeps=activation is not None)


def linear_backward(inputs, outputs, dtype, activation):
    grad, before = torch.empty(2, TEXT + prod(GRID), outputs, dtype=dtype)
    weight, scale = torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs)
    int8_linear_backward(grad, weight, scale, before if activation else None)
