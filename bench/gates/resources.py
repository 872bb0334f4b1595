"""Compiles the kernels of a launcher for any architecture, without a GPU, and reads what they use.

A launcher is called with fake tensors while its launches are recorded. Each is then compiled with the same
arguments; integers are real, so that Triton specialises as in a real launch.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ditflow_kernels import tuning

KIB = 1024
SHARED_LIMIT = {80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB}
INSTRUCTIONS = {  # name in the table: pattern in PTX
    "mma_sync": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "async_copies": r"\bcp\.async\.(?:c[ag]\b|bulk\.tensor)",
    "wide_loads": r"\bld\.global\S*\.v4\.b32|\bld\.global\S*\.v2\.b64",
    "wide_stores": r"\bst\.global\S*\.v4\.b32|\bst\.global\S*\.v2\.b64",
}


class Case(NamedTuple):
    """A launcher with example arguments; `call` makes them, under fake tensors, and calls it."""

    name: str
    call: Callable[[], Any]


@dataclass(frozen=True)
class Pointer:
    """What Triton reads of a tensor to compile: its dtype, and whether its address is a multiple of 16."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return 0


class Launch(NamedTuple):
    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: tuple
    options: dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """One kernel, compiled."""

    case: str
    kernel: str
    architecture: int
    registers: int  # a thread
    stack: int  # bytes a thread; more than 0 means spilled registers
    shared: int  # bytes a program
    mma_sync: int
    wgmma: int
    tcgen05: int
    async_copies: int
    wide_loads: int  # 16 bytes a thread
    wide_stores: int


class CompileOnlyDriver:
    """The part of Triton's driver that compiling needs; each architecture is a device of its own."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def recorded(case: Case, architecture: int) -> list[Launch]:
    """Every launch of a case on that architecture; nothing is compiled."""
    launches = []

    def record(kernel, *arguments, grid, warmup, **options):
        pointers = (_pointer(argument) for argument in arguments)
        named = {name: _pointer(option) for name, option in options.items()}
        launches.append(Launch(kernel, grid, tuple(pointers), named))

    with (
        FakeTensorMode(),
        torch.no_grad(),
        triton.knobs.runtime.scope(),
        patch.object(JITFunction, "run", record),
        patch.object(tuning, "architecture", lambda device: architecture),
    ):
        # launchers accept CPU tensors only under the interpreter
        triton.knobs.runtime.interpret = True
        case.call()
    return launches


def compiled(launch: Launch, architecture: int):
    """Triton's compiled kernel."""
    triton.runtime.driver.set_active(CompileOnlyDriver(architecture))
    return launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.options)


def resources(case: Case, architecture: int) -> list[Resources]:
    """Each kernel of a case, once for each specialisation among its launches."""
    found = {}
    for each in recorded(case, architecture):
        kernel = compiled(each, architecture)
        if kernel.hash not in found:
            found[kernel.hash] = _read(case.name, each.kernel.__name__, architecture, kernel)
    return list(found.values())


def _read(case: str, name: str, architecture: int, kernel) -> Resources:
    usage = _cuobjdump(kernel.asm["cubin"], "--dump-resource-usage")
    # the kernel comes last, after the functions that it calls
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1]
    ptx = kernel.asm["ptx"]
    counts = {name: len(re.findall(pattern, ptx)) for name, pattern in INSTRUCTIONS.items()}
    return Resources(case, name, architecture, int(registers), int(stack), kernel.metadata.shared, **counts)


def _cuobjdump(cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _pointer(argument):
    if not isinstance(argument, torch.Tensor):
        return argument
    return Pointer(argument.dtype, argument.storage_offset() * argument.element_size())
