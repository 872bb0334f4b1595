"""Motion flow in plain PyTorch: one product over heads and head_dim, a chunk of queries at a time.

`kernels/README.md` has the derivation. Logits, and everything made from them before the next product, are
float32. `workspace` bounds a pass's temporary memory in bytes. It does not include what the pass returns or
accumulates, nor the float32 input copies that a CPU makes for fp16 and for hard flow.
"""

from math import e, log2

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.chunks import Chunk, all_chunks, counted_chunks
from ditflow_kernels.motion_flow.frame_operands import FrameOperands, product
from ditflow_kernels.motion_flow.rows import counted_rows
from ditflow_kernels.motion_flow.scaling import scale_into
from ditflow_kernels.workspace import workspace_bytes

LOG2_E = log2(e)


def soft_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    temperature: float,
    workspace: int | None = None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # [frames, frames, cells, 2], [frames, frames, cells] float32
    """The flow, and the log2sumexp from which `flow_gradients` recomputes the probabilities."""
    operands = FrameOperands.of(query, key, grid, temperature)
    budget = workspace or workspace_bytes(query.device.type)
    expected, log2sumexp = _expected_coordinates(operands, budget)
    return expected.sub_(operands.coordinates), log2sumexp


def flow_gradients(
    grad_flow: Tensor,  # [frames, frames, cells, 2]
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    flow: Tensor,  # [frames, frames, cells, 2]
    log2sumexp: Tensor,  # [frames, frames, cells]
    grid: tuple[int, int, int],
    temperature: float,
    workspace: int | None = None,
    launch: bool = True,
) -> tuple[Tensor, Tensor]:  # as query and key
    """Gradients of query and key."""
    operands = FrameOperands.of(query, key, grid, temperature)
    budget = (workspace or workspace_bytes(query.device.type)) - 4 * flow.numel()
    # scale grad_flow to size 1 and move its size to the factor: small values would vanish in fp16
    size = grad_flow.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    expected = flow + operands.coordinates
    unscaled = _flow_gradients(operands, grad_flow / size, expected, log2sumexp, budget)
    return tuple(_scaled(gradient, size * operands.scale, query) for gradient in unscaled)


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
    """The loss, the gradients of query and key without their factor, and the factor.

    Without `launch` the reference has no values to read, so every chunk counts.
    """
    operands = FrameOperands.of(query, key, grid, temperature)
    reference = reference.float()
    counted = counted_rows(reference, rows)
    budget = workspace or workspace_bytes(query.device.type)
    squares, grad_query, grad_key = _squares_and_gradients(
        operands, reference, counted if launch else None, budget
    )
    components = _components(reference, counted)
    return squares / components, grad_query, grad_key, 2 * operands.scale / components


def hard_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],
    workspace: int | None = None,
    launch: bool = True,
) -> Tensor:  # [frames, frames, cells, 2] float32
    """Coordinates of the likeliest cell minus those of the query's own cell."""
    budget = workspace or workspace_bytes(query.device.type)
    if query.device.type == "cpu":
        query, key = query.float(), key.float()  # logits rounded to bf16 would decide near ties at random
    operands = FrameOperands.of(query, key, grid, temperature=1.0)
    frames, cells, _ = operands.query.shape
    likeliest = torch.empty(frames, frames, cells, dtype=torch.int64, device=query.device)
    for chunk in all_chunks(frames, cells, operands.flow_bytes_per_query, budget):
        logits = _logits(operands, chunk, slice(0, frames), operands.scale)
        likeliest[chunk.query_frame, :, chunk.queries] = logits.argmax(dim=-1).T
    return operands.coordinates[likeliest] - operands.coordinates


def _expected_coordinates(operands: FrameOperands, budget: int) -> tuple[Tensor, Tensor]:
    """Expected (x, y), [frames, frames, cells, 2], and the logits' log2sumexp, [frames, frames, cells]."""
    frames, cells, _ = operands.query.shape
    expected = torch.empty(frames, frames, cells, 2, device=operands.query.device)
    log2sumexp = torch.empty(frames, frames, cells, device=operands.query.device)
    for chunk in all_chunks(frames, cells, operands.flow_bytes_per_query, budget):
        weights, maximum = _weights(operands, chunk, slice(0, frames))
        mean, total = _mean_coordinates(operands, weights)
        expected[chunk.query_frame, :, chunk.queries] = mean.transpose(0, 1)
        log2sumexp[chunk.query_frame, :, chunk.queries] = ((maximum + total.log()) * LOG2_E).T
    return expected, log2sumexp


def _flow_gradients(
    operands: FrameOperands,
    grad_flow: Tensor,  # [frames, frames, cells, 2]
    expected: Tensor,  # [frames, frames, cells, 2]
    log2sumexp: Tensor,  # [frames, frames, cells]
    budget: int,
) -> tuple[Tensor, Tensor]:  # [frames, cells, channels] twice
    """Gradients of query and key without the factor `operands.scale`."""
    grad_query, grad_key = _empty_gradients(operands)
    mean_key = operands.mean_key()
    frames, cells, _ = operands.query.shape
    budget -= operands.key_gradient_bytes
    key_frames = slice(0, frames)
    for chunk in all_chunks(frames, cells, operands.gradient_bytes_per_query, budget):
        here = chunk.query_frame, key_frames, chunk.queries
        logits = _logits(operands, chunk, key_frames, operands.scale * LOG2_E)
        probabilities = logits.sub_(log2sumexp[here].T[..., None]).exp2_()
        of_chunk, mean = (tensor[here].transpose(0, 1) for tensor in (grad_flow, expected))
        grad_logits = _grad_logits(operands, probabilities, of_chunk, mean)
        grad_query[chunk.query_frame, chunk.queries] = _product_gradients(
            operands, chunk, key_frames, grad_logits, mean_key, grad_key
        )
    return grad_query, grad_key.to(grad_query.dtype)


def _squares_and_gradients(
    operands: FrameOperands,
    reference: Tensor,  # [frames, frames, cells, 2]
    counted: Tensor | None,  # [frames, frames, cells] bool; None: every row counts
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:  # scalar, [frames, cells, channels] twice
    """Sum of squared differences, and its gradients without their factor `2 * operands.scale`."""
    squares = reference.new_zeros(())
    grad_query, grad_key = _empty_gradients(operands)
    mean_key = operands.mean_key()
    frames, cells, _ = operands.query.shape
    budget -= operands.key_gradient_bytes
    if counted is None:
        chunks = all_chunks(frames, cells, operands.gradient_bytes_per_query, budget)
    else:
        chunks = counted_chunks(counted, operands.gradient_bytes_per_query, budget)
    for chunk in chunks:
        grad_of_chunk = 0
        for key_frames in chunk.key_frame_runs:
            here = chunk.query_frame, key_frames, chunk.queries
            weights, _ = _weights(operands, chunk, key_frames)
            mean, total = _mean_coordinates(operands, weights)
            difference = mean.transpose(0, 1) - operands.coordinates[chunk.queries] - reference[here]
            if counted is not None:
                difference = difference.where(counted[here][..., None], 0)
            difference = difference.transpose(0, 1)
            squares += difference.square().sum()
            grad_logits = _grad_logits(operands, weights, difference / total[..., None], mean)
            grad_of_chunk += _product_gradients(operands, chunk, key_frames, grad_logits, mean_key, grad_key)
        grad_query[chunk.query_frame, chunk.queries] = grad_of_chunk
    return squares, grad_query, grad_key.to(grad_query.dtype)


def _logits(operands: FrameOperands, chunk: Chunk, key_frames: slice, scale: float) -> Tensor:
    """`scale * query . key`, [queries, key frames, cells] float32."""
    query = operands.query[chunk.query_frame, chunk.queries]
    key = operands.key[key_frames]
    logits = product(query, key.flatten(0, 1).T).mul_(scale)
    return logits.view(len(query), *key.shape[:2])


def _weights(operands: FrameOperands, chunk: Chunk, key_frames: slice) -> tuple[Tensor, Tensor]:
    """`exp(logit - maximum)`, [queries, key frames, cells], and the maximum logit, [queries, key frames]."""
    logits = _logits(operands, chunk, key_frames, operands.scale)
    maximum = logits.amax(dim=-1)
    return logits.sub_(maximum[..., None]).exp_(), maximum


def _mean_coordinates(operands: FrameOperands, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean (x, y), [queries, key frames, 2], and the weights' sum, [queries, key frames]."""
    image = weights.unflatten(-1, (operands.height, operands.width))
    over_y, over_x = image.sum(dim=-2), image.sum(dim=-1)
    total = over_y.sum(dim=-1)
    moments = [(over_y * operands.x).sum(dim=-1), (over_x * operands.y).sum(dim=-1)]
    return torch.stack(moments, dim=-1) / total[..., None], total


def _grad_logits(
    operands: FrameOperands,
    weights: Tensor,  # [queries, key frames, cells], overwritten
    grad_flow: Tensor,  # [queries, key frames, 2], zero in rows that do not count
    mean: Tensor,  # [queries, key frames, 2]
) -> Tensor:  # [queries, key frames, cells], in the operands' dtype
    """`weight * (grad_flow . (coordinates - mean))`."""
    along_x = grad_flow[..., :1] * (operands.x - mean[..., :1])  # [queries, key frames, width]
    along_y = grad_flow[..., 1:] * (operands.y - mean[..., 1:])  # [queries, key frames, height]
    image = weights.unflatten(-1, (operands.height, operands.width))
    image *= along_y[..., :, None] + along_x[..., None, :]
    return weights.to(operands.query.dtype)


def _product_gradients(
    operands: FrameOperands,
    chunk: Chunk,
    key_frames: slice,
    grad_logits: Tensor,  # [queries, key frames, cells]
    mean_key: Tensor | None,  # [channels] float32
    grad_key: Tensor,  # [frames, cells, channels] float32, accumulated here
) -> Tensor:  # [queries, channels] float32
    """The gradient of the chunk's queries; adds the chunk's share of the key gradient to `grad_key`."""
    query = operands.query[chunk.query_frame, chunk.queries]
    for of_frame, grad_frame in zip(grad_logits.unbind(1), grad_key[key_frames], strict=True):
        grad_frame += product(of_frame.T, query)
    grad_logits = grad_logits.flatten(1)
    grad_query = product(grad_logits, operands.key[key_frames].flatten(0, 1))
    if mean_key is not None:
        # rounded rows do not sum to zero
        grad_query.addr_(grad_logits.sum(dim=1, dtype=torch.float32), mean_key, alpha=-1)
    return grad_query


def _empty_gradients(operands: FrameOperands) -> tuple[Tensor, Tensor]:
    """For queries, which each chunk sets; for keys, which all chunks add to in float32."""
    grad_query = torch.empty_like(operands.query, dtype=operands.unscaled_dtype)
    return grad_query, torch.zeros_like(operands.key, dtype=torch.float32)


def _components(reference: Tensor, counted: Tensor | None) -> Tensor:
    """Number of components that the loss averages over, at least one."""
    if counted is None:
        return reference.new_tensor(reference.numel())
    return 2 * counted.sum().clamp(min=1)


def _scaled(unscaled: Tensor, factor: Tensor, like: Tensor) -> Tensor:
    """`unscaled * factor`, multiplied in float32, in the shape and dtype of `like`."""
    return scale_into(torch.empty_like(unscaled, dtype=like.dtype), unscaled, factor).view(like.shape)
