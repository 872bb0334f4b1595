"""What autograd's graphs save for backward."""

import weakref
from collections import Counter
from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes(saved_tensors_hooks):
    """The most bytes that graphs hold at once: `peak_bytes`. Storages of `present` do not count."""

    def __init__(self, present: Iterable[Tensor] = ()):
        super().__init__(self._pack, lambda held: held.tensor)
        self.present = {tensor.untyped_storage()._cdata for tensor in present}
        self.holders: Counter[int] = Counter()  # by storage
        self.bytes = self.peak_bytes = 0

    def __enter__(self) -> "SavedBytes":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> "_Held":
        held, storage = _Held(tensor), tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place not in self.present:
            self.bytes += 0 if self.holders[place] else size
            self.holders[place] += 1
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            weakref.finalize(held, self._release, place, size)
        return held

    def _release(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        self.bytes -= 0 if self.holders[place] else size


class _Held:
    """Stands for a saved tensor in its graph and dies with it."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # an output refers to its graph, which would never die
