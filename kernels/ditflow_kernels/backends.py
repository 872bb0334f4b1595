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

REFERENCE_DTYPES = ("bfloat16", "float16", "float32", "float64")
DTYPES = ("bfloat16", "float16", "float32")


def choose(backend: str, device: device, dtype: dtype) -> str:
    """The name of the backend to run, with "auto" resolved. Imports nothing, so torch.compile can trace it.

    Raises ValueError for an unknown backend, and for a dtype that the backend does not support.
    """
    name = FASTEST.get(device.type, "chunked") if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(
            f"unknown backend {backend!r}: use 'auto' or one of {', '.join(map(repr, BACKENDS))}"
        )
    accepted = REFERENCE_DTYPES if name == "reference" else DTYPES
    if str(dtype).removeprefix("torch.") not in accepted:
        raise ValueError(f"backend {name!r} does not take {dtype}: convert to one of {', '.join(accepted)}")
    return name


def check_triton_device(device: device) -> None:
    """Raise ValueError where no Triton kernel can be launched."""
    import triton

    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(f"backend 'triton' needs a CUDA device, not {device}: use backend 'chunked'")


@contextmanager
def as_on(device_type: str) -> Iterator[None]:
    """Resolve "auto" on the CPU as it would be on `device_type`, for fake CPU tensors that stand for it."""
    before = FASTEST["cpu"]
    FASTEST["cpu"] = FASTEST[device_type]
    try:
        yield
    finally:
        FASTEST["cpu"] = before
