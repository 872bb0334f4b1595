"""What the passes share: the type of a norm, which gradients are wanted, and memory layout."""

from typing import NamedTuple

from torch import Tensor

# weight and bias [head_dim], eps: layer norm over each head;
# weight [heads * head_dim], None, eps: RMS norm over all heads together
Norm = tuple[Tensor, Tensor | None, float] | None


class Wanted(NamedTuple):
    """Which gradients a backward pass computes."""

    query: bool
    key: bool
    rope: bool


def with_same_strides(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors with equal strides and contiguous channels; copied only if they are not so already.

    Projections give queries and keys equal strides, as two matrices or as views of a fused one. A token's
    heads must also lie within 2^31 elements: the kernels address them with 32 bits.
    """
    in_reach = first.stride(-1) == 1 and first.stride(-2) * first.shape[-2] < 2**31
    if in_reach and first.stride() == second.stride():
        return first, second
    return first.contiguous(), second.contiguous()


def norm_arguments(norm: Norm) -> tuple[Tensor | None, Tensor | None, float]:
    """Weight, bias and eps as kernel arguments."""
    if norm is None:
        return None, None, 0.0
    weight, bias, eps = norm
    return weight.contiguous(), None if bias is None else bias.contiguous(), eps
