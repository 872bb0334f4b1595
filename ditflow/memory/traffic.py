"""Counts the bytes that operations other than products read and write in device memory, at the least."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch._ops import OpOverload

from ditflow.memory.host import is_on_host

ATEN = torch.ops.aten
ALLOCATIONS = {
    *(ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.empty_permuted),
    *(ATEN.new_empty, ATEN.new_empty_strided),
}
OVERWRITE = {ATEN.copy_, ATEN.fill_, ATEN.zero_}  # whose first argument is not read

Region = tuple[int, int]  # a tensor's first element in its storage, and its size


class Traffic:
    """Takes all operations between two products as one kernel, as if a compiler fused them without fail.

    In such a stretch each tensor is read once, and what it made is written once if it is still alive when the
    next product starts. What products read and write is not counted: they are bound by arithmetic.
    """

    def __init__(self):
        # of this stretch, by storage
        self._read: defaultdict[int, set[Region]] = defaultdict(set)
        self._made: defaultdict[int, dict[Region, int]] = defaultdict(dict)

    def between_products(
        self, operation: OpOverload, given: Iterable[Tensor], results: Iterable[Tensor]
    ) -> int:
        """The bytes that an operation reads which this stretch has neither read nor made."""
        given, results, packet = list(given), list(results), operation.overloadpacket
        mutates = operation._schema.is_mutable
        places = {_place(tensor) for tensor in given}
        is_view = not mutates and all(_place(tensor) in places for tensor in results)  # or has no results
        if packet in ALLOCATIONS or is_view or _is_copy_of_host(packet, given):
            return 0
        moved = sum(self._first_read(tensor) for tensor in given[packet in OVERWRITE :])
        for tensor in results:
            if mutates or _place(tensor) not in places:
                self._made[_place(tensor)][_region(tensor)] = _bytes(tensor)
        return moved

    def end_stretch(self) -> int:
        """The bytes that it has to write. Called before each product and each kernel that is not fused."""
        written = sum(sum(made.values()) for made in self._made.values())
        self._read.clear()
        self._made.clear()
        return written

    def forget(self, place: int) -> None:
        """A storage was freed: what was only in the stretch is never written."""
        self._read.pop(place, None)
        self._made.pop(place, None)

    def _first_read(self, tensor: Tensor) -> int:
        place, region = _place(tensor), _region(tensor)
        if place in self._made or region in self._read[place]:
            return 0
        self._read[place].add(region)
        return _bytes(tensor)


def moved_by_kernel(given: Iterable[Tensor], results: Iterable[Tensor]) -> int:
    """What a kernel moves that nothing is fused with."""
    return sum(map(_bytes, given)) + sum(map(_bytes, results))


def moved_by_rounding(given: Iterable[Tensor]) -> int:
    """What rounding moves before an 8-bit product: it reads the 16-bit matrices and writes one in 8 bits."""
    read = [tensor for tensor in given if tensor.is_floating_point() and tensor.ndim > 1]
    return sum(map(_bytes, read)) + (read[0].numel() if read else 0)


def _is_copy_of_host(packet: object, given: list[Tensor]) -> bool:
    """Whether bytes come from host memory or go there: they are counted as copies."""
    return packet is ATEN.copy_ and is_on_host(given[0]) != is_on_host(given[1])


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _region(tensor: Tensor) -> Region:
    return tensor.storage_offset(), tensor.numel()


def _bytes(tensor: Tensor) -> int:
    """Without what is read again because it is expanded."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
