"""Measures peak memory and work of the real code on fake tensors, in seconds, without weights or a GPU.

Tensors that stand for host memory are marked (`ditflow.memory.host`). All others count as on the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ditflow.memory.fake_tensors import ATTENTION, fake_tensors, run_operation, tensors_in
from ditflow.memory.host import is_on_host
from ditflow.memory.traffic import Traffic, moved_by_kernel, moved_by_rounding
from ditflow_kernels.fakes import FAKES

ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
COPY = torch.ops.aten.copy_.default
BACKWARD_SHARE = 2.5  # of the forward's work: it computes the logits again, and four more products


class Tracker(TorchDispatchMode):
    """Counts the bytes of live storages, each storage once, and the work of operations.

    `flops` includes `attention_flops`, and `int8_flops` of products in 8 bits; `copied_bytes` are copied from
    marked host memory to the device; `moved_bytes` are read and written on the device by all operations but
    products (see `Traffic`).

    torch's FlopCounterMode also watches modules, which keeps activations alive.
    """

    def __init__(self, present: Iterable[Tensor] = ()):
        """`present`: tensors that are already on the device, such as weights."""
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live_bytes = self.peak_bytes = self.copied_bytes = self.moved_bytes = 0
        self.flops = self.attention_flops = self.int8_flops = 0
        self._traffic = Traffic()
        for tensor in present:
            self._count(tensor)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation in FAKES and args[0].is_meta:
            with self, fake_tensors():  # otherwise allocations inside it would not be seen
                result = FAKES[operation](*args, **kwargs)
        else:
            result = run_operation(operation, args, kwargs)
        given, results = list(tensors_in([args, *kwargs.values()])), list(tensors_in(result))
        self._count_work(operation, given, results, self._flops(operation, args, kwargs, result))
        for tensor in results:
            self._count(tensor)
        if operation is ATTENTION_BACKWARD.default:
            # on a GPU, flash attention sums the gradient of the queries in an extra float32 buffer
            self.peak_bytes = max(self.peak_bytes, self.live_bytes + 4 * args[1].numel())
        if operation is COPY and is_on_host(args[1]) and not is_on_host(args[0]):
            self.copied_bytes += args[0].nbytes
        return result

    def __exit__(self, *error):
        self.moved_bytes += self._traffic.end_stretch()
        return super().__exit__(*error)

    @staticmethod
    def _flops(operation: OpOverload, args: Any, kwargs: Any, result: Any) -> int:
        packet = operation.overloadpacket
        # torch has formulas for attention on CUDA, but not for the CPU's attention operator
        formula = ATTENTION_FORMULAS.get(packet) or flop_registry.get(packet)
        return formula(*args, **kwargs, out_val=result) if formula else 0

    def _count_work(
        self, operation: OpOverload, given: list[Tensor], results: list[Tensor], flops: int
    ) -> None:
        self.flops += flops
        in_int8 = flops and any(tensor.dtype == torch.int8 for tensor in given)
        if operation.overloadpacket in ATTENTION_FORMULAS:
            self.attention_flops += flops
        elif in_int8:
            self.int8_flops += flops
        if not flops and operation not in FAKES:
            self.moved_bytes += self._traffic.between_products(operation, given, results)
            return
        self.moved_bytes += self._traffic.end_stretch()
        if in_int8:
            self.moved_bytes += moved_by_rounding(given)
        elif not flops:
            self.moved_bytes += moved_by_kernel(given, results)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self.sizes or is_on_host(tensor):
            return
        self.sizes[place] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, place)

    def _free(self, place: int) -> None:
        self.live_bytes -= self.sizes.pop(place)
        self._traffic.forget(place)


def _attention_flops(query: Tensor, key: Tensor, *_, **__) -> int:
    return 2 * 2 * query.numel() * key.shape[2]


def _attention_backward_flops(grad: Tensor, query: Tensor, key: Tensor, *_, **__) -> int:
    return int(BACKWARD_SHARE * _attention_flops(query, key))


ATTENTION_FORMULAS = {ATTENTION: _attention_flops, ATTENTION_BACKWARD: _attention_backward_flops}
