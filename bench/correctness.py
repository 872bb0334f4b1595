"""Compares every operation on the device with its definition in float64, before anything is measured.

A result may be twice as far from float64 as plain PyTorch in the same precision, plus an epsilon of the
largest value.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.passes import TEMPERATURE, Size, linear_inputs, prepared_inputs, video_inputs
from ditflow_kernels import int8_linear, motion_flow, motion_flow_loss, qk_norm_rope

EPSILON = {torch.float32: 4e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SIZES = [
    Size("one frame", (1, 5, 7), 3, 16, text=4),
    Size("ragged", (3, 13, 17), 5, 64, text=7),
    Size("wide heads", (2, 11, 19), 3, 128, text=1),
    Size("5B heads", (4, 15, 22), 48, 64, text=226),
    Size("Wan heads", (4, 15, 22), 12, 128, text=0, rms_norm=True),
    Size("Wan 14B heads", (2, 5, 7), 40, 128, text=0, rms_norm=True),
]


class WrongResult(Exception):
    """An operation differs from its definition."""


def check_all(device: torch.device, backend: str, sizes: list[Size] = SIZES) -> int:
    """The number of comparisons made. Raises WrongResult, after all of them, with those that failed."""
    count, wrong = 0, []

    def checked(check: Callable, *given) -> None:
        try:
            check(*given)
        except WrongResult as found:
            wrong.append(str(found))

    for size in sizes:
        for precision, epsilon in EPSILON.items():
            for name, *results in comparisons(size._replace(dtype=precision), device, backend):
                checked(compare, f"{name}, {size.name}, {precision}", *results, epsilon)
                count += 1
        checked(check_ties, size, device, backend)
    if wrong:
        raise WrongResult("; ".join(wrong))
    return count


def comparisons(size: Size, device: torch.device, backend: str) -> Iterator[tuple]:
    """Name, our results, those of plain PyTorch, those in float64."""
    query, key, flow, grid = video_inputs(size, device, 0)
    if size.grid[0] == 1:
        flow[..., ::2, :] = 1.0

    def soft(function, tokens, **options):
        result = function(*tokens, grid, TEMPERATURE, **options)
        return [result, *torch.autograd.grad((result * flow).sum(), tokens)]

    def loss(function, tokens, reference=flow, **options):
        result = function(*tokens, reference.to(tokens[0].dtype), grid, TEMPERATURE, **options)
        return [result, *torch.autograd.grad(result, tokens)]

    tokens = query, key
    yield "flow", *_three(soft, motion_flow, tokens, backend)
    for rows in ("moving", "all"):
        yield f"loss, {rows} rows", *_three(partial(loss, rows=rows), motion_flow_loss, tokens, backend)
    ragged = flow.clone()
    ragged[:, :, ::5] = ragged[:, :, 1::5, 0] = torch.nan
    given = partial(loss, reference=ragged, rows="given")
    yield "loss, given rows", *_three(given, motion_flow_loss, tokens, backend)
    yield "flow in panels", *_three(partial(soft, workspace_bytes=1), motion_flow, tokens, backend)
    yield "loss in panels", *_three(partial(loss, workspace_bytes=1), motion_flow_loss, tokens, backend)

    query, key, (norm, _, rope, text), gradients = prepared_inputs(size, device, 0)
    for name, norms, turn in (
        ("norm and rope", (norm, norm), rope),
        ("norm", (norm, norm), None),
        ("rope", (None, None), rope),
    ):
        prepare = partial(_prepare, norms=norms, text=text, gradients=gradients)
        inputs = [query, key] if turn is None else [query, key, turn.requires_grad_()]
        yield name, *_three(prepare, qk_norm_rope, inputs, backend)

    x, weight, scale, bias = linear_inputs(size, device, 0)
    for name, activation in ("linear in 8 bits", None), ("linear in 8 bits with GELU", "gelu_tanh"):
        run = partial(_linear, layer=(weight, scale, bias), activation=activation)
        yield name, *_three(run, int8_linear, [x], backend)


def _three(run: Callable, function: Callable, tokens, backend: str) -> tuple:
    by, plain = partial(function, backend=backend), partial(function, backend="reference")
    return run(by, tokens), run(plain, tokens), run(plain, _double(tokens))


def _double(tokens) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tokens]


def _prepare(function: Callable, inputs, norms, text: int, gradients) -> list[Tensor]:
    query, key, *rope = inputs
    norms = [norm and _norm_like(query, *norm) for norm in norms]
    outputs = function(query, key, *norms, rope[0] if rope else None, text)
    gradients = [gradient.to(query.dtype) for gradient in gradients]
    return [*outputs, *torch.autograd.grad(outputs, inputs, gradients)]


def _norm_like(query: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple:
    return weight.to(query.dtype), None if bias is None else bias.to(query.dtype), eps


def _linear(function: Callable, inputs, layer, activation: str | None) -> list[Tensor]:
    (x,) = inputs
    result = function(x, *layer, activation=activation)
    grad = torch.arange(result.numel(), device=x.device).view(result.shape).cos().to(x.dtype)
    return [result, *torch.autograd.grad(result, inputs, grad)]


def check_ties(size: Size, device: torch.device, backend: str) -> None:
    """Hard flow: among equal keys the first cell wins, otherwise the likeliest in float64."""
    query, key, _, grid = video_inputs(size, device, 1)
    _, height, width = grid
    cells = torch.arange(height * width, device=device)
    places = torch.stack([cells % width, cells // width], dim=-1)
    tied = motion_flow(query, torch.zeros_like(key), grid, TEMPERATURE, hard=True, backend=backend)
    if not torch.equal(tied, -places.expand_as(tied).float()):
        raise WrongResult(f"hard flow, ties, {size.name}: not the lowest index")
    ours = motion_flow(query, key, grid, TEMPERATURE, hard=True, backend=backend)
    exact = motion_flow(query.double(), key.double(), grid, TEMPERATURE, hard=True, backend="reference")
    wrong = (ours != exact).any(dim=-1).float().mean().item()
    if wrong > 1e-3:  # leaves room for near ties
        raise WrongResult(f"hard flow, {size.name}: {100 * wrong:.2f} % of the rows differ from float64")


def compare(name: str, ours: list, plain: list, exact: list, epsilon: float) -> None:
    for index, (result, theirs, truth) in enumerate(zip(ours, plain, exact, strict=True)):
        if not result.isfinite().all():
            raise WrongResult(f"{name}: tensor {index} is not finite")
        error, plain_error = ((tensor.double() - truth).abs().max().item() for tensor in (result, theirs))
        budget = 2 * plain_error + epsilon * truth.abs().max().item()
        if error > budget:
            raise WrongResult(f"{name}: tensor {index} is {error:.2e} off, {budget:.2e} are allowed")
