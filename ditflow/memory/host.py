"""Buffers in host memory, and a record of which storages count as host memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

SLAB = 1 << 30  # bytes of one allocation, unless a single buffer is larger
PINNABLE = 0.6  # share of the free host memory
ALIGNMENT = 256  # bytes; of each tensor in a buffer

_storages: set[int] = set()
_making = False


@contextmanager
def on_host() -> Iterator[None]:
    """Storages made within this context count as host memory from the start."""
    global _making
    _making = True
    try:
        yield
    finally:
        _making = False


def keep_on_host(tensor: Tensor) -> Tensor:
    """Mark a tensor's storage as host memory. When the device is the CPU too, `tensor.device` cannot tell."""
    storage = tensor.untyped_storage()
    if storage._cdata not in _storages:
        _storages.add(storage._cdata)
        weakref.finalize(storage, _storages.discard, storage._cdata)
    return tensor


def is_on_host(tensor: Tensor) -> bool:
    """Whether a tensor's storage is marked as host memory."""
    return _making or tensor.untyped_storage()._cdata in _storages


class HostBuffers:
    """A flat buffer for each of `sizes` (bytes), cut from few allocations (slabs).

    The pinned allocator rounds each allocation up to a power of two: 42 buffers of 67 MiB would take 5.3 GiB,
    but cut from slabs they take 2.8. `bytes` is the host memory that they take, including rounding.
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
    """Whether the host can spare `size` bytes. Other processes cannot use pinned memory."""
    return size < PINNABLE * psutil.virtual_memory().available


def packed_bytes(tensors: Sequence[Tensor]) -> int:
    """The size of a flat buffer that holds all of the tensors."""
    return sum(_aligned(tensor.nbytes) for tensor in tensors)


def packed_views(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views into a flat buffer, one with the shape and dtype of each tensor in `like`."""
    views, offset = [], 0
    for tensor in like:
        views.append(buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        offset += _aligned(tensor.nbytes)
    return views


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shares(sizes: Sequence[int]) -> list[list[int]]:
    """Group the sizes in order, as many in a group as fit into a slab."""
    shares: list[list[int]] = []
    for size in sizes:
        if shares and sum(shares[-1]) + size <= SLAB:
            shares[-1].append(size)
        else:
            shares.append([size])
    return shares
