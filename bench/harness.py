"""Time and memory of a call on a device, and what the device can do at best."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils._pytree import tree_leaves

from bench.energy import energy_counter

WARM_UP = 3
ROUNDS = 30  # at most
MILLISECONDS = 400.0  # that one measurement takes, about
AHEAD = 10  # calls in a queue at a time
STEP_ROUNDS, STEP_SECONDS = 3, 5.0  # of a whole step, at most, but once at least
GIB = 1 << 30


class Ceilings(NamedTuple):
    """What a device was seen to do at best, in the same run."""

    copied_bytes: float  # read and written, a second
    product_flops: float  # of bf16, a second


class Cost(NamedTuple):
    """What a whole step takes."""

    milliseconds: float
    allocated_bytes: int  # at the peak, all that was there before included
    reserved_bytes: int  # from the driver
    joules: float | None  # where the driver tells


class Meter(Protocol):
    """Measures calls; a test passes its own."""

    device: torch.device

    def milliseconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        """The median time of a call, the calls taken in turn: each has an input set of its own."""

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """What a call takes at most beyond what was there before and beyond what it returns."""

    def free_bytes(self) -> int:
        """What could be allocated now."""

    def cost(self, call: Callable[[], Any]) -> Cost:
        """What a call takes that keeps the device busy for long, the second time and later."""


class CudaMeter:
    """Implements `Meter` with CUDA events."""

    def __init__(self, device: torch.device):
        self.device, self.energy = device, energy_counter(device)

    def milliseconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        for turn in range(max(WARM_UP, len(calls))):
            calls[turn % len(calls)]()
        torch.cuda.synchronize(self.device)
        once = self._times(calls, 1, 0)[0]
        rounds = max(3, min(ROUNDS, int(MILLISECONDS / max(once, 1e-3))))
        times = []
        for first in range(0, rounds, AHEAD):
            times += self._times(calls, min(AHEAD, rounds - first), first)
        return statistics.median(times)

    def _times(self, calls: Sequence[Callable[[], Any]], count: int, first: int) -> list[float]:
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(count)] for _ in range(2))
        # the device waits while calls are queued: its time is measured, not that of Python
        torch.cuda._sleep(20_000_000)
        for turn in range(count):
            starts[turn].record()
            calls[(first + turn) % len(calls)]()
            ends[turn].record()
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before - result_bytes(result)

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def cost(self, call: Callable[[], Any]) -> Cost:
        call()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        times, before = [], self.energy()
        while not times or (len(times) < STEP_ROUNDS and sum(times) < STEP_SECONDS):
            start = time.perf_counter()
            call()
            torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        after = self.energy()
        return Cost(
            1e3 * statistics.median(times),
            torch.cuda.max_memory_allocated(self.device),
            torch.cuda.max_memory_reserved(self.device),
            None if before is None or after is None else (after - before) / len(times),
        )


class Deadline:
    """The time that is left of a run's."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.clock, self.end = clock, clock() + seconds

    @property
    def left(self) -> float:
        return self.end - self.clock()


def result_bytes(result: Any) -> int:
    """Memory of the tensors in a result, storages counted once."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def measure_ceilings(meter: Meter, elements: int = GIB // 2, side: int = 8192) -> Ceilings:
    """A copy of random bf16 numbers and a product of random bf16 matrices."""
    return Ceilings(_copied_bytes(meter, elements), _product_flops(meter, side))


def _copied_bytes(meter: Meter, elements: int) -> float:
    source = torch.randn(elements, dtype=torch.bfloat16, device=meter.device)
    target = torch.empty_like(source)
    return 2e3 * source.nbytes / meter.milliseconds([lambda: target.copy_(source)])


def _product_flops(meter: Meter, side: int) -> float:
    kind = {"dtype": torch.bfloat16, "device": meter.device}
    out = torch.empty(side, side, **kind)
    pairs = [torch.randn(2, side, side, **kind) for _ in range(2)]
    return 2e3 * side**3 / meter.milliseconds([lambda pair=pair: torch.mm(*pair, out=out) for pair in pairs])
