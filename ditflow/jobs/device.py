"""Chooses the device of a job, and makes torch deterministic if asked to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ditflow.errors import DitflowError, SettingsError
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


@contextmanager
def computing(settings: Settings) -> Iterator[None]:
    """Apply torch's global settings while a job computes; restore them afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if settings.deterministic:
        # cuBLAS is deterministic only with a fixed workspace
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


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
