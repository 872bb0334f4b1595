"""Which implementation of an operation runs. A backend is a module of that name in the operation's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import device, dtype

BACKENDS = ("reference", "chunked", "triton")
# what "auto" means, by device type
FASTEST = {"cpu": "chunked", "cuda": "triton" if find_spec("triton") else "chunked"}

# below it Triton uses no tensor cores, and spills
LEAST_CAPABILITY = (8, 0)

REFERENCE_DTYPES = ("bfloat16", "float16", "float32", "float64")
DTYPES = ("bfloat16", "float16", "float32")


def choose(backend: str, device: device, dtype: dtype) -> str:
    """The name of the backend to run, with "auto" resolved. Imports nothing, so torch.compile can trace it.

    Raises ValueError for an unknown backend, and for a dtype that the backend does not support.
    """
    name = fastest(device) if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(
            f"unknown backend {backend!r}: use 'auto' or one of {', '.join(map(repr, BACKENDS))}"
        )
    accepted = REFERENCE_DTYPES if name == "reference" else DTYPES
    if str(dtype).removeprefix("torch.") not in accepted:
        raise ValueError(f"backend {name!r} does not take {dtype}: convert to one of {', '.join(accepted)}")
    return name


def fastest(device: device) -> str:
    """What "auto" means on a device."""
    name = FASTEST.get(device.type, "chunked")
    return "chunked" if name == "triton" and capability_below_triton(device) else name


def capability_below_triton(device: device) -> str | None:
    """The compute capability of a GPU that is too old for the Triton kernels, such as "7.5", or else None."""
    import torch

    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    # torch.compile folds this call into a constant
    found = torch.cuda.get_device_properties(device)
    return f"{found.major}.{found.minor}" if (found.major, found.minor) < LEAST_CAPABILITY else None


def check_triton_device(device: device) -> None:
    """Raise ValueError where no Triton kernel can be launched."""
    import triton

    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(f"backend 'triton' needs a CUDA device, not {device}: use backend 'chunked'")
    if old := capability_below_triton(device):
        raise ValueError(
            f"backend 'triton' needs a GPU of compute capability 8.0 or later, and {device} has {old}: "
            "use backend 'chunked'"
        )


@contextmanager
def as_on(device_type: str) -> Iterator[None]:
    """Resolve "auto" on the CPU as it would be on `device_type`, for fake CPU tensors that stand for it."""
    from torch import device

    before = FASTEST["cpu"]
    FASTEST["cpu"] = fastest(device(device_type))
    try:
        yield
    finally:
        FASTEST["cpu"] = before
