"""Changes of a target: stronger or weaker, mirrored, reversed, shifted, combined with another one.

Targets are [frames (query), frames (key), height * width, 2] in latent patches; NaN: free (see
`ditflow.motion`). Every function returns a new one, and what leaves the frame by the change becomes free.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ditflow.models.protocols import Grid


def inside(target: Tensor, grid: Grid) -> Tensor:
    """The target, free where it leads out of the frame, more than half a patch from every cell's middle."""
    y, x = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    reached = target + torch.stack([x.flatten(), y.flatten()], dim=-1).to(target)
    sides = torch.tensor([grid.width, grid.height]).to(target)
    stays = ((reached >= -0.5) & (reached <= sides - 0.5)).all(dim=-1, keepdim=True)
    return target.where(stays, torch.nan)


def scaled(target: Tensor, grid: Grid, factor: float) -> Tensor:
    """Every displacement times the factor; the cells that move stay the same."""
    return inside(target * factor, grid)


def flipped(target: Tensor, grid: Grid, axis: Literal["horizontal", "vertical"]) -> Tensor:
    """The mirrored motion: `horizontal` exchanges left and right, `vertical` exchanges top and bottom."""
    dim, sign = (3, (-1, 1)) if axis == "horizontal" else (2, (1, -1))
    pictures = target.unflatten(2, (grid.height, grid.width)).flip(dim)
    return (pictures * torch.tensor(sign).to(target)).flatten(2, 3)


def reversed_in_time(target: Tensor) -> Tensor:
    """The motion played backwards: the last latent frame becomes the first, among queries and keys."""
    return target.flip(0, 1)


def shifted(target: Tensor, grid: Grid, x: float, y: float) -> Tensor:
    """The same motion at another place: x of the width to the right, y of the height down.

    The shift is rounded to whole cells. Cells that it leaves behind are free.
    """
    right, down = round(x * grid.width), round(y * grid.height)
    pictures = target.unflatten(2, (grid.height, grid.width))
    moved = torch.full_like(pictures, torch.nan)
    to_rows, from_rows = _overlap(grid.height, down)
    to_columns, from_columns = _overlap(grid.width, right)
    moved[:, :, to_rows, to_columns] = pictures[:, :, from_rows, from_columns]
    return inside(moved.flatten(2, 3), grid)


def between_frames(target: Tensor) -> Tensor:
    """The target, free within each frame, where nothing can move."""
    within = torch.eye(len(target), dtype=torch.bool, device=target.device)[:, :, None, None]
    return target.where(~within, torch.nan)


def combined(
    within: Tensor,
    cells: Tensor,  # [frames (query), height * width] bool
    elsewhere: Tensor | None = None,
) -> Tensor:
    """One target in the cells of a mask, and another one elsewhere; without it, those are free."""
    return within.where(cells[:, None, :, None], torch.nan if elsewhere is None else elsewhere)


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Where the cells of an axis go that a shift keeps, and where they come from."""
    kept = max(size - abs(shift), 0)
    first, second = slice(size - kept, size), slice(0, kept)
    return (first, second) if shift > 0 else (second, first)
