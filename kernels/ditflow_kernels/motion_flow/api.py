"""The public functions of motion flow. They check the arguments; the backends trust them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ditflow_kernels.backends import choose
from ditflow_kernels.checks import check_matching

if TYPE_CHECKING:
    from torch import Tensor

ROWS = ("moving", "given", "all")


def motion_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],  # frames, height, width in patches
    temperature: float,
    *,
    hard: bool = False,
    backend: str = "auto",
    workspace_bytes: int | None = None,
) -> Tensor:  # [frames (query), frames (key), height * width, 2]
    """Where each patch goes: `softmax_j(temperature * mean_heads(q_i . k_j / sqrt(head_dim))) . c_j - c_i`.

    The softmax is over the patches j of one key frame; c_j is the position of j. Displacements are (x, y) in
    latent patches, x to the right and y down, in float32 (float64 for float64 input). Video tokens only.
    `hard=True` takes the likeliest patch, the lowest index on a tie, and has no gradient. `workspace_bytes`
    bounds a pass's temporary memory beyond its results; None uses the backend's default. Source: DiTFlow
    (CVPR 2025), Attention Motion Flow, with the logits averaged over heads.

    Raises ValueError if shapes, dtypes or devices do not match, or if the backend is unknown.
    """
    _check_tokens(query, key, grid)
    chosen = choose(backend, query.device, query.dtype)
    grid, temperature = tuple(grid), float(temperature)
    if hard:
        query, key = query.detach(), key.detach()
    if chosen == "reference":
        from ditflow_kernels.motion_flow import reference

        return reference.motion_flow(query, key, grid, temperature, hard=hard)
    from ditflow_kernels.motion_flow import operators

    settings = {"hard": hard, "backend": chosen, "workspace_bytes": workspace_bytes}
    return operators.motion_flow(query, key, grid, temperature, **settings)


def motion_flow_loss(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    reference: Tensor,  # [frames (query), frames (key), height * width, 2]
    grid: tuple[int, int, int],  # frames, height, width in patches
    temperature: float,
    *,
    rows: str = "moving",
    backend: str = "auto",
    workspace_bytes: int | None = None,
) -> Tensor:  # scalar
    """`mean((motion_flow - reference) ** 2)` over both components of the rows that count, in patches squared.

    A row is one patch and one key frame. `rows="given"` counts the rows whose reference is not NaN in either
    component, `"moving"` those of them with `|reference| > 0`, and `"all"` every row, so that a NaN makes the
    loss NaN. If no row counts, the loss and its gradients are 0. float32 (float64 for float64 input).
    `reference` gets no gradient. `workspace_bytes` bounds the temporary memory beyond the loss and its
    gradients; with less, the work is split into more, smaller parts. None uses the backend's default.

    Raises ValueError if shapes, dtypes or devices do not match, or if the backend or `rows` is unknown.
    """
    _check_tokens(query, key, grid)
    frames, height, width = grid
    expected = (frames, frames, height * width, 2)
    if tuple(reference.shape) != expected:
        raise ValueError(f"reference {list(reference.shape)} must be {list(expected)} for grid {tuple(grid)}")
    if reference.device != query.device:
        raise ValueError(f"reference is on {reference.device}, query on {query.device}: use one device")
    if rows not in ROWS:
        raise ValueError(f"unknown rows {rows!r}: use one of {', '.join(map(repr, ROWS))}")
    chosen = choose(backend, query.device, query.dtype)
    arguments = query, key, reference.detach(), tuple(grid), float(temperature)
    if chosen == "reference":
        from ditflow_kernels.motion_flow.reference import motion_flow_loss as from_definition

        return from_definition(*arguments, rows=rows)
    from ditflow_kernels.motion_flow import operators

    settings = {"rows": rows, "backend": chosen, "workspace_bytes": workspace_bytes}
    return operators.motion_flow_loss(*arguments, **settings)


def _check_tokens(query: Tensor, key: Tensor, grid: tuple[int, int, int]) -> None:
    check_matching("S, heads, head_dim", query=query, key=key)
    tokens = query.shape[0]
    if len(grid) != 3 or min(grid) < 1 or prod(grid) != tokens:
        raise ValueError(
            f"grid {tuple(grid)} must be (frames, height, width) with a product of {tokens} video tokens"
        )
