"""Chooses the device of a job, and torch's settings on it."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

import torch

from ditflow.errors import DitflowError, SettingsError
from ditflow.memory.torch_state import torch_state
from ditflow.models.compute import FP16_SUMS
from ditflow.models.families import local_folder
from ditflow.settings import Settings

LARGE = 1e9  # bytes of weights beyond which a CPU is too slow


def choose_device(settings: Settings) -> torch.device:
    """The device that the settings name.

    Raises DitflowError if it does not exist, or if `auto` would put a large model on a CPU.
    """
    if settings.device != "auto":
        return _named(settings.device)
    if torch.cuda.is_available():
        return _indexed(torch.device("cuda"))
    if _is_large(settings.model):
        raise DitflowError(
            f"model {settings.model} needs a CUDA GPU, and this machine has none; use --model small, which "
            "runs on a CPU, or --device cpu, which takes days"
        )
    return torch.device("cpu")


def computing(settings: Settings, threads: int | None = None) -> AbstractContextManager[None]:
    """Torch's global settings for a whole job, whatever the caller has set (see `torch_state`).

    `threads`: of the CPU; None means as many as the caller uses.
    """
    return torch_state(settings.deterministic, threads, settings.compute == FP16_SUMS)


def _named(name: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise SettingsError(f"device: {name!r} given; accepted: auto, cpu, cuda, cuda:1, ...")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DitflowError(
            f"device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs; try --device cpu"
        )
    return _indexed(device)


def _indexed(device: torch.device) -> torch.device:
    """A CUDA device with its index, which some of torch's functions require."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _is_large(model: str) -> bool:
    """Whether a model is too large for a CPU. A model that is not on this machine counts as large."""
    folder = local_folder(model)
    if folder is None:
        return True
    return sum(path.stat().st_size for path in folder.glob("transformer/*.safetensors")) > LARGE
