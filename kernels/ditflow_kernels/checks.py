"""Argument checks that several public functions share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_matching(axes: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape with the axes named, one dtype and one device."""
    *others, last = tensors
    names = f"{', '.join(others)} and {last}"
    shapes = [list(tensor.shape) for tensor in tensors.values()]
    if len(shapes[0]) != len(axes.split(",")) or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{names} must share one shape [{axes}], not {', '.join(map(str, shapes))}")
    kinds = [f"{tensor.dtype} on {tensor.device}" for tensor in tensors.values()]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"{names} must share one dtype and device, not {', '.join(kinds)}")
