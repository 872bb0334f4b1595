"""Motion flow in plain PyTorch: one contraction over heads and head_dim, a panel of query rows at a time.

The derivation is in `kernels/README.md`. What is made from the logits is float32 until the next product.
`workspace` bounds the temporary memory of a pass in bytes. What the pass returns or sums up does not count,
nor do the float32 copies of the inputs that a CPU takes for fp16 and for hard flow.
"""

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.chunks import Panel, all_panels, counting_panels
from ditflow_kernels.motion_flow.frame_operands import Problem, product
from ditflow_kernels.motion_flow.scaling import scale_into
from ditflow_kernels.workspace import workspace_bytes


def soft_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    temperature: float,
    workspace: int | None = None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # [frames, frames, cells, 2], [frames, frames, cells] float32
    """Flow, and the logsumexp from which `flow_gradients` makes the probabilities again."""
    problem = Problem.of(query, key, grid, temperature)
    expected, logsumexp = _expected_cells(problem, workspace or workspace_bytes(query.device.type))
    return expected.sub_(problem.cells), logsumexp


def flow_gradients(
    grad: Tensor,  # [frames, frames, cells, 2], of the flow
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    flow: Tensor,  # [frames, frames, cells, 2]
    logsumexp: Tensor,  # [frames, frames, cells]
    grid: tuple[int, int, int],
    temperature: float,
    workspace: int | None = None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # as query and key
    """Gradients to query and key."""
    problem = Problem.of(query, key, grid, temperature)
    budget = (workspace or workspace_bytes(query.device.type)) - 4 * flow.numel()
    # the panels see a gradient of size 1, its size joins the factor: in fp16 a small one would vanish
    size = grad.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    expected = flow + problem.cells
    unscaled = _flow_gradients(problem, grad / size, expected, logsumexp, budget)
    return tuple(_scaled(of_tokens, size * problem.scale, query) for of_tokens in unscaled)


def loss_and_gradients(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    reference: Tensor,  # [frames, frames, cells, 2]
    grid: tuple[int, int, int],
    temperature: float,
    rows: str,
    workspace: int | None = None,
    launch: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [], [frames, cells, channels] twice, []
    """Loss, gradients to query and key but for a factor, the factor.

    Without `launch` the reference has no values to ask which panels count: all do.
    """
    problem = Problem.of(query, key, grid, temperature)
    reference = reference.float()
    counts = (reference != 0).any(dim=-1) if rows == "moving" else None
    asked = counts if launch else None
    budget = workspace or workspace_bytes(query.device.type)
    squares, grad_query, grad_key = _squares_and_gradients(problem, reference, asked, budget)
    components = _components(reference, counts)
    return squares / components, grad_query, grad_key, 2 * problem.scale / components


def hard_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    workspace: int | None = None,
    launch: bool = True,
) -> Tensor:  # [frames, frames, cells, 2] float32
    """Likeliest cell minus own cell."""
    budget = workspace or workspace_bytes(query.device.type)
    if query.device.type == "cpu":
        query, key = query.float(), key.float()  # logits rounded to bf16 would decide near ties by chance
    problem = Problem.of(query, key, grid, temperature=1.0)
    frames, cells, _ = problem.query.shape
    likeliest = torch.empty(frames, frames, cells, dtype=torch.int64, device=query.device)
    for panel in all_panels(frames, cells, problem.forward_bytes_per_row, budget):
        logits = _logits(problem, panel, slice(0, frames))
        likeliest[panel.frame, :, panel.cells] = logits.argmax(dim=-1).T
    return problem.cells[likeliest] - problem.cells


def _expected_cells(problem: Problem, budget: int) -> tuple[Tensor, Tensor]:
    """Expected cells, [frames, frames, cells, 2], and logsumexp of the logits, [frames, frames, cells]."""
    frames, cells, _ = problem.query.shape
    expected = torch.empty(frames, frames, cells, 2, device=problem.query.device)
    logsumexp = torch.empty(frames, frames, cells, device=problem.query.device)
    for panel in all_panels(frames, cells, problem.forward_bytes_per_row, budget):
        weights, largest = _weights(problem, panel, slice(0, frames))
        mean, total = _mean_cell(problem, weights)
        expected[panel.frame, :, panel.cells] = mean.transpose(0, 1)
        logsumexp[panel.frame, :, panel.cells] = (largest + total.log()).T
    return expected, logsumexp


def _flow_gradients(
    problem: Problem,
    grad: Tensor,  # [frames, frames, cells, 2], of the flow
    expected: Tensor,  # [frames, frames, cells, 2]
    logsumexp: Tensor,  # [frames, frames, cells]
    budget: int,
) -> tuple[Tensor, Tensor]:  # [frames, cells, channels] twice
    """Gradients to query and key, but for the factor `problem.scale`."""
    grad_query, grad_key = _gradients_to_fill(problem)
    frames, cells, _ = problem.query.shape
    budget -= problem.key_gradient_bytes
    for panel in all_panels(frames, cells, problem.gradient_bytes_per_row, budget):
        run = slice(0, frames)
        here = panel.frame, run, panel.cells
        probabilities = _logits(problem, panel, run).sub_(logsumexp[here].T[..., None]).exp_()
        pull, mean = (tensor[here].transpose(0, 1) for tensor in (grad, expected))
        grad_logits = _grad_logits(problem, probabilities, pull, mean)
        grad_query[panel.frame, panel.cells] = _products(problem, panel, run, grad_logits, grad_key)
    return grad_query, grad_key.to(grad_query.dtype)


def _squares_and_gradients(
    problem: Problem,
    reference: Tensor,  # [frames, frames, cells, 2]
    counts: Tensor | None,  # [frames, frames, cells] bool; None: every row
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:  # scalar, [frames, cells, channels] twice
    """Sum of squared differences, and its gradients to query and key but for a factor `2 * problem.scale`."""
    squares = reference.new_zeros(())
    grad_query, grad_key = _gradients_to_fill(problem)
    frames, cells, _ = problem.query.shape
    budget -= problem.key_gradient_bytes
    if counts is None:
        panels = all_panels(frames, cells, problem.gradient_bytes_per_row, budget)
    else:
        panels = counting_panels(counts, problem.gradient_bytes_per_row, budget)
    for panel in panels:
        grad_rows = 0
        for run in panel.runs:
            here = panel.frame, run, panel.cells
            weights, _ = _weights(problem, panel, run)
            mean, total = _mean_cell(problem, weights)
            difference = mean.transpose(0, 1) - problem.cells[panel.cells] - reference[here]
            difference = _counting(difference, None if counts is None else counts[here]).transpose(0, 1)
            squares += difference.square().sum()
            grad_logits = _grad_logits(problem, weights, difference / total[..., None], mean)
            grad_rows += _products(problem, panel, run, grad_logits, grad_key)
        grad_query[panel.frame, panel.cells] = grad_rows
    return squares, grad_query, grad_key.to(grad_query.dtype)


def _logits(problem: Problem, panel: Panel, run: slice) -> Tensor:  # [rows, key frames, cells] float32
    query = problem.query[panel.frame, panel.cells]
    key = problem.key[run]
    logits = product(query, key.flatten(0, 1).T).mul_(problem.scale)
    return logits.view(len(query), *key.shape[:2])


def _weights(problem: Problem, panel: Panel, run: slice) -> tuple[Tensor, Tensor]:
    """`exp(logit - largest)`, [rows, key frames, cells], and the largest logit, [rows, key frames]."""
    logits = _logits(problem, panel, run)
    largest = logits.amax(dim=-1)
    return logits.sub_(largest[..., None]).exp_(), largest


def _mean_cell(problem: Problem, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (x, y) under the weights, [rows, key frames, 2], and their total, [rows, key frames]."""
    image = weights.unflatten(-1, (problem.height, problem.width))
    of_columns, of_lines = image.sum(dim=-2), image.sum(dim=-1)
    total = of_columns.sum(dim=-1)
    moments = [(of_columns * problem.columns).sum(dim=-1), (of_lines * problem.lines).sum(dim=-1)]
    return torch.stack(moments, dim=-1) / total[..., None], total


def _grad_logits(
    problem: Problem,
    weights: Tensor,  # [rows, key frames, cells], overwritten
    pull: Tensor,  # [rows, key frames, 2], zero where a row does not count
    mean: Tensor,  # [rows, key frames, 2]
) -> Tensor:  # [rows, key frames, cells], in the dtype of the products
    """`weight * (pull . (cell - mean))`."""
    along_x = pull[..., :1] * (problem.columns - mean[..., :1])  # [rows, key frames, width]
    along_y = pull[..., 1:] * (problem.lines - mean[..., 1:])  # [rows, key frames, height]
    image = weights.unflatten(-1, (problem.height, problem.width))
    image *= along_y[..., :, None] + along_x[..., None, :]
    return weights.to(problem.query.dtype)


def _products(
    problem: Problem,
    panel: Panel,
    run: slice,
    grad_logits: Tensor,  # [rows, key frames, cells]
    grad_key: Tensor,  # [frames, cells, channels] float32, added to
) -> Tensor:  # [rows, channels] float32
    """What the logits' gradient gives to the panel's queries; its share for the keys is added to theirs."""
    query = problem.query[panel.frame, panel.cells]
    for of_frame, grad_frame in zip(grad_logits.unbind(1), grad_key[run], strict=True):
        grad_frame += product(of_frame.T, query)
    return product(grad_logits.flatten(1), problem.key[run].flatten(0, 1))


def _gradients_to_fill(problem: Problem) -> tuple[Tensor, Tensor]:
    """To the queries, which every panel sets its part of, and to the keys, which all panels add to."""
    grad_query = torch.empty_like(problem.query, dtype=problem.kept_dtype)
    return grad_query, torch.zeros_like(problem.key, dtype=torch.float32)


def _counting(difference: Tensor, counts: Tensor | None) -> Tensor:  # zero in rows that do not count
    return difference if counts is None else difference.where(counts[..., None], 0)


def _components(reference: Tensor, counts: Tensor | None) -> Tensor:
    """How many components the loss is the mean of, one at least."""
    return reference.new_tensor(reference.numel()) if counts is None else 2 * counts.sum().clamp(min=1)


def _scaled(unscaled: Tensor, factor: Tensor, like: Tensor) -> Tensor:
    """`unscaled * factor`, multiplied in float32, in the shape and dtype of `like`."""
    return scale_into(torch.empty_like(unscaled, dtype=like.dtype), unscaled, factor).view(like.shape)
