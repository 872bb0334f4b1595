"""What autograd's graphs hold for their way back."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes(saved_tensors_hooks):
    """The most bytes that graphs hold at once, each storage once: `peak_bytes`.

    Storages of `present` are left out: weights and inputs are there anyway.
    """

    def __init__(self, present: Iterable[Tensor] = ()):
        super().__init__(self._pack, lambda held: held.tensor)
        self.present = {tensor.untyped_storage()._cdata for tensor in present}
        self.holders: Counter[int] = Counter()  # how often a graph has saved a storage
        self.bytes = self.peak_bytes = 0

    def __enter__(self) -> SavedBytes:
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> _Held:
        held, storage = _Held(tensor), tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place not in self.present:
            self.bytes += 0 if self.holders[place] else size
            self.holders[place] += 1
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            weakref.finalize(held, self._let_go, place, size)
        return held

    def _let_go(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        self.bytes -= 0 if self.holders[place] else size


class _Held:
    """Stands for a saved tensor in its graph: gone when the graph is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # a result knows its graph, which then would never be gone
