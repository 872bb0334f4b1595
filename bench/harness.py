"""The timing harness of all benchmarks: time, peak memory and energy of calls, on a CPU or a GPU."""

import ctypes
import multiprocessing
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from ditflow.memory.presets import GIB

WARM_UP = 3
ROUNDS, MILLISECONDS = 30, 400.0  # of one pass: at most, and about
AHEAD = 10  # calls queued at a time
NVML = "libnvidia-ml.so.1"  # the driver's own library
STEP_ROUNDS, STEP_SECONDS = 3, 5.0  # of a whole step: at most, but one round at least
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of the C library's malloc.h

Call = Callable[[], Any]
Clock = Callable[[], float]
CPU = torch.device("cpu")


def seconds(
    call: Call, times: int = 1, device: torch.device = CPU, clock: Clock = time.perf_counter
) -> float:
    """Time of `times` calls, until the device has finished them."""
    _synchronise(device)
    start = clock()
    for _ in range(times):
        call()
    _synchronise(device)
    return clock() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steady() -> None:
    """Use one thread and, with the GNU C library, never return memory to the system.

    Threads wait for each other, and fresh pages for a large tensor take as long as a pass: both differ from
    process to process.
    """
    torch.set_num_threads(1)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def resident_peak(work: Call) -> float:
    """MiB that `work` adds to the resident set at its peak. Linux only (/proc)."""
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    work()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def in_fresh_processes(function: Callable, cases: Sequence) -> list:
    """`function` of each case, in a process of its own, one after the other."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(function, cases, chunksize=1)


def result_bytes(result: Any) -> int:
    """Bytes of the tensors in a result; each storage counts once."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


class Cost(NamedTuple):
    """What a whole step takes."""

    milliseconds: float
    allocated_bytes: int  # at the peak, including what was there before
    reserved_bytes: int  # taken from the driver
    joules: float | None  # None if the driver does not count them


class CudaMeter:
    """Measures calls on a GPU, by CUDA events, the allocator's statistics and the driver's energy counter."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter):
        self.device, self.clock, self.energy = device, clock, energy_counter(device)

    def milliseconds(self, calls: Sequence[Call]) -> float:
        """Median time of a warm call. The calls take turns; each has its own input set."""
        for turn in range(max(WARM_UP, len(calls))):
            calls[turn % len(calls)]()
        torch.cuda.synchronize(self.device)
        once = self._times(calls, 1, 0)[0]
        rounds = max(3, min(ROUNDS, int(MILLISECONDS / max(once, 1e-3))))
        times = []
        for first in range(0, rounds, AHEAD):
            times += self._times(calls, min(AHEAD, rounds - first), first)
        return statistics.median(times)

    def _times(self, calls: Sequence[Call], count: int, first: int) -> list[float]:
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(count)] for _ in range(2))
        # the device waits while calls are queued: its time is measured, not Python's
        torch.cuda._sleep(20_000_000)
        for turn in range(count):
            starts[turn].record()
            calls[(first + turn) % len(calls)]()
            ends[turn].record()
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]

    def peak_bytes(self, call: Call) -> int:
        """Peak memory of a call, beyond what was there before and beyond its result."""
        self._forget_peaks()
        before = torch.cuda.memory_allocated(self.device)
        result = call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before - result_bytes(result)

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def cost(self, call: Call) -> Cost:
        """Cost of a long call after its first time."""
        call()
        self._forget_peaks()
        times, before = [], self.energy()
        while not times or (len(times) < STEP_ROUNDS and sum(times) < STEP_SECONDS):
            times.append(seconds(call, device=self.device, clock=self.clock))
        after = self.energy()
        return Cost(
            1e3 * statistics.median(times),
            torch.cuda.max_memory_allocated(self.device),
            torch.cuda.max_memory_reserved(self.device),
            None if before is None or after is None else (after - before) / len(times),
        )

    def _forget_peaks(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)


def energy_counter(device: torch.device) -> Callable[[], float | None]:
    """A function that returns joules since the driver was loaded, or None if it does not count them."""
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return lambda: None
    return counter_of(library, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def counter_of(library: ctypes.CDLL, uuid: str) -> Callable[[], float | None]:
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    found = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle))

    def joules() -> float | None:
        # fails before Volta, and for a part of a GPU
        if found or library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            return None
        return millijoules.value / 1e3

    return joules


class Ceilings(NamedTuple):
    """The best that a device did in the same run."""

    copied_bytes: float  # read and written, a second
    product_flops: float  # in bf16, a second
    int8_product_flops: float  # a second


def measure_ceilings(meter: CudaMeter, elements: int = GIB // 2, side: int = 8192) -> Ceilings:
    """Rates of a copy of random bf16 numbers and of products of random matrices, in bf16 and in int8."""
    kind = {"dtype": torch.bfloat16, "device": meter.device}
    source = torch.randn(elements, **kind)
    target = torch.empty_like(source)
    copied = 2e3 * source.nbytes / meter.milliseconds([partial(target.copy_, source)])
    del source, target
    out, pairs = torch.empty(side, side, **kind), [torch.randn(2, side, side, **kind) for _ in range(2)]
    products = [lambda pair=pair: torch.mm(*pair, out=out) for pair in pairs]
    rate = 2e3 * side**3 / meter.milliseconds(products)
    # the library multiplies bytes fastest by a matrix whose columns are contiguous
    pairs = [(16 * pair).to(torch.int8) for pair in pairs]
    products = [lambda left=left, right=right.T: torch._int_mm(left, right) for left, right in pairs]
    return Ceilings(copied, rate, 2e3 * side**3 / meter.milliseconds(products))


class Deadline:
    """The time left for a run."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic):
        self.clock, self.end = clock, clock() + seconds

    @property
    def left(self) -> float:
        return self.end - self.clock()


def commit() -> str:
    """The commit that was measured, with `+` if files differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")
