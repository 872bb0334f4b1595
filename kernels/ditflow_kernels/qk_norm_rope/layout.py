"""What the passes are given: how queries and keys lie in memory, and the tile a program takes of them."""

from typing import NamedTuple

from torch import Tensor

Norm = tuple[Tensor, Tensor, float] | None  # weight [head_dim], bias [head_dim], eps


class Wanted(NamedTuple):
    """Which gradients a backward pass is asked for."""

    query: bool
    key: bool
    rope: bool


def alike(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The tensors with one set of strides and unit steps in head_dim: as they are where that holds already.

    Queries and keys come alike from the projections, be they two matrices or views of a fused one. A token's
    heads lie within the reach of 32 bits.
    """
    within_reach = first.stride(-1) == 1 and first.stride(-2) * first.shape[-2] < 2**31
    if within_reach and all(other.stride() == first.stride() for other in others):
        return first, *others
    return first.contiguous(), *(other.contiguous() for other in others)


def parts(norm: Norm) -> tuple[Tensor | None, Tensor | None, float]:
    """Weight, bias and eps as a kernel takes them."""
    if norm is None:
        return None, None, 0.0
    weight, bias, eps = norm
    return weight.contiguous(), bias.contiguous(), eps


def block_shape(heads: int, head_dim: int, tile_elements: int) -> tuple[int, int]:
    """Heads and channels of a tile, both powers of two; at least a pair of channels."""
    channels = max(2, power_of_two(head_dim))
    return max(1, min(power_of_two(heads), tile_elements // channels)), channels


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()
