"""Host memory: buffers for what waits beside the device, and which storages they are."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

SLAB = 1 << 30  # bytes of one allocation, unless a single buffer is larger
PINNABLE = 0.6  # of the host memory that is free
ALIGNMENT = 256  # bytes; where each tensor begins in a buffer

_storages: set[int] = set()
_making = False


@contextmanager
def on_host() -> Iterator[None]:
    """Storages made meanwhile count as host memory from the start."""
    global _making
    _making = True
    try:
        yield
    finally:
        _making = False


def keep_on_host(tensor: Tensor) -> Tensor:
    """Mark a tensor's storage as host memory: its device alone does not tell where both are the CPU."""
    storage = tensor.untyped_storage()
    if storage._cdata not in _storages:
        _storages.add(storage._cdata)
        weakref.finalize(storage, _storages.discard, storage._cdata)
    return tensor


def is_on_host(tensor: Tensor) -> bool:
    """Whether a tensor's storage has been marked so."""
    return _making or tensor.untyped_storage()._cdata in _storages


class HostBuffers:
    """A flat buffer for each of `sizes` (bytes), cut from few allocations.

    The pinned allocator rounds each allocation up to a power of two: 42 buffers of 67 MiB would take 5.3 GiB,
    cut from slabs they take 2.8. `bytes` is what the host gives, rounding included.
    """

    def __init__(self, sizes: Sequence[int], pinned: bool):
        self.buffers: list[Tensor] = []
        self.bytes = 0
        for share in _shares(sizes):
            with on_host():
                slab = keep_on_host(torch.empty(sum(share), dtype=torch.uint8, pin_memory=pinned))
            self.buffers += slab.split(share)
            self.bytes += 1 << (sum(share) - 1).bit_length()


def can_pin(size: int) -> bool:
    """Whether the host has so many bytes to spare: pinned memory is lost to everybody else."""
    return size < PINNABLE * psutil.virtual_memory().available


def packed_bytes(tensors: Sequence[Tensor]) -> int:
    """The size of a flat buffer in which all of them lie."""
    return sum(_aligned(tensor.nbytes) for tensor in tensors)


def packed_views(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Where each of such tensors lies in a flat buffer: views of its shape and type."""
    views, offset = [], 0
    for tensor in like:
        views.append(buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        offset += _aligned(tensor.nbytes)
    return views


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shares(sizes: Sequence[int]) -> list[list[int]]:
    """The sizes in their order, as many together as a slab takes."""
    shares: list[list[int]] = []
    for size in sizes:
        if shares and sum(shares[-1]) + size <= SLAB:
            shares[-1].append(size)
        else:
            shares.append([size])
    return shares
