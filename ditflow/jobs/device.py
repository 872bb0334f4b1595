"""Chooses the device of a job, and torch's settings on it.

Imports torch only for what a job computes with: a machine without a GPU refuses large models at once.
"""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ditflow.errors import DitflowError, SettingsError
from ditflow.models.families import local_folder
from ditflow.settings import Settings

if TYPE_CHECKING:
    import torch

LARGE = 1e9  # bytes of weights beyond which a CPU is too slow
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def choose_device(settings: Settings) -> torch.device:
    """The device that the settings name.

    Raises DitflowError if it does not exist, or if `auto` would put a large model on a CPU.
    """
    name = device_name(settings)
    import torch

    device = torch.device(name)
    if device.type == "cuda" and device.index is None:  # some of torch's functions require it
        return torch.device("cuda", torch.cuda.current_device())
    return device


def device_name(settings: Settings) -> str:
    """The name of that device, such as cpu, cuda or cuda:1. Raises the same errors."""
    name = settings.device
    if name == "auto":
        if gpu_count():
            return "cuda"
        if _is_large(settings.model):
            raise DitflowError(
                f"model {settings.model} needs a CUDA GPU, and this machine has none; use --model small, "
                "which runs on a CPU, or --device cpu, which takes days"
            )
        return "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise SettingsError(f"device: {name!r} given; accepted: auto, cpu, cuda, cuda:1, ...")
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= (count := gpu_count()):
        raise DitflowError(f"device {name}: this machine has {count} CUDA GPUs; try --device cpu")
    return name


def gpu_count() -> int:
    """How many GPUs torch can use. Does not import torch if the driver finds none."""
    if "torch" not in sys.modules and not _driver_finds_gpu():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def is_on_cpu(settings: Settings) -> bool:
    """Whether a run computes on the CPU. A large model does not, even if it has to wait for a GPU."""
    if settings.device != "auto":
        return settings.device == "cpu"
    return not (gpu_count() or _is_large(settings.model))


def computing(settings: Settings, threads: int | None = None) -> AbstractContextManager[None]:
    """Torch's global settings for a whole job, whatever the caller has set (see `torch_state`).

    `threads`: of the CPU; None means as many as the caller uses.
    """
    from ditflow.memory.torch_state import torch_state
    from ditflow.models.compute import FP16_SUMS

    return torch_state(settings.deterministic, threads, settings.compute == FP16_SUMS)


def _driver_finds_gpu() -> bool:
    """Whether NVIDIA's driver is installed and shows this process a GPU."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _is_large(model: str) -> bool:
    """Whether a model is too large for a CPU. A model that is not on this machine counts as large."""
    folder = local_folder(model)
    if folder is None:
        return True
    return sum(path.stat().st_size for path in folder.glob("transformer/*.safetensors")) > LARGE
