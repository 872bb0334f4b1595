"""Motion flow from its definition, in any floating dtype, for tests and reading. Holds [heads, S, S]."""

import torch
from torch import Tensor


def motion_flow(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    grid: tuple[int, int, int],  # frames, height, width in patches
    temperature: float,
    *,
    hard: bool = False,
) -> Tensor:  # [frames, frames, height * width, 2]
    """Expected (if hard, likeliest) position in the key frame minus the query's own: (x, y) in patches."""
    frames, height, width = grid
    head_logits = torch.einsum("imd,jmd->mij", query, key) / query.shape[-1] ** 0.5
    logits = head_logits.mean(dim=0)
    logits = logits.view(frames, height * width, frames, height * width)  # query frame, cell, key frame, cell

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    coordinates = torch.stack([x.flatten(), y.flatten()], dim=-1).to(query)  # [height * width, 2]

    if hard:
        target = coordinates[logits.argmax(dim=-1)]
    else:
        target = (temperature * logits).softmax(dim=-1) @ coordinates
    flow = target - coordinates[:, None, :]  # [query frame, cell, key frame, 2]
    return flow.transpose(1, 2).to(torch.promote_types(query.dtype, torch.float32))


def motion_flow_loss(
    query: Tensor,  # [S, heads, head_dim]
    key: Tensor,  # [S, heads, head_dim]
    reference: Tensor,  # [frames, frames, height * width, 2]
    grid: tuple[int, int, int],
    temperature: float,
    *,
    rows: str,
) -> Tensor:  # scalar
    """Mean squared difference from `reference` over both components of the rows that count."""
    flow = motion_flow(query, key, grid, temperature)
    if rows == "moving":
        counted = reference.norm(dim=-1) > 0  # not of NaN
    elif rows == "given":
        counted = ~reference.norm(dim=-1).isnan()
    else:
        counted = torch.ones_like(reference[..., 0], dtype=torch.bool)
    if not counted.any():
        return 0 * flow.sum()
    return (flow - reference)[counted].square().mean()
