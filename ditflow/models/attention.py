"""The attention kernels by name. A kernel's package is imported only when a model is built with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditflow.errors import DitflowError, SettingsError, first_line

# query, key, value -> attended values, each [1, tokens, heads, head_dim]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The kernel that torch chooses."""
    by_head = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*by_head).transpose(1, 2)


def cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """cuDNN's kernel, through torch."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(query, key, value)


def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention 2, from its package."""
    from flash_attn import flash_attn_func

    return flash_attn_func(query, key, value, deterministic=torch.are_deterministic_algorithms_enabled())


def xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The kernel that xFormers chooses."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(query, key, value)


def sage(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SageAttention: 8-bit products, not exact."""
    from sageattention import sageattn

    return sageattn(query, key, value, tensor_layout="NHD")


@dataclass(frozen=True)
class Kernel:
    """A kernel for softmax attention, and its requirements."""

    attend: Attend
    package: str | None = None  # to import it from
    install: str = ""  # command that installs the package
    architecture: tuple[int, int] | None = (8, 0)  # least compute capability; None: runs on any device
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
    gradient: bool = True
    repeatable: bool = True  # bit for bit, if torch's deterministic algorithms are on

    def missing(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why the kernel is not available, or None. Imports nothing."""
        if self.package and not find_spec(self.package):
            return f"{self.package} is not installed ({self.install})"
        if self.architecture is None:
            return None
        if device.type != "cuda":
            return f"needs a CUDA GPU, and this run computes on {device.type}"
        if torch.cuda.get_device_capability(device) < self.architecture:
            return f"needs a GPU of compute capability {'.'.join(map(str, self.architecture))} or later"
        if dtype not in self.dtypes:
            return f"computes only in {_names(self.dtypes)}, and --dtype is {_names([dtype])}"
        return None


KERNELS = {
    "sdpa": Kernel(sdpa, architecture=None),
    "cudnn": Kernel(cudnn, repeatable=False),
    "flash": Kernel(flash, "flash_attn", "pip install flash-attn --no-build-isolation"),
    "xformers": Kernel(
        xformers,
        "xformers",
        'pip install "ditflow[xformers]"',
        architecture=(7, 0),
        dtypes=(torch.float16, torch.bfloat16, torch.float32),
        repeatable=False,
    ),
    "sage": Kernel(sage, "sageattention", "pip install sageattention", gradient=False),
}


def fastest_forward(device: torch.device, dtype: torch.dtype, deterministic: bool) -> str:
    """What `--attention-forward auto` means on a device."""
    cudnn = KERNELS["cudnn"]
    if deterministic or cudnn.missing(device, dtype) or torch.cuda.get_device_capability(device) < (9, 0):
        return "sdpa"
    return "cudnn"


def check_attention(
    name: str,
    needs_gradient: bool,
    device: torch.device,
    dtype: torch.dtype,
    deterministic: bool = False,
    flag: str = "--attention",
) -> None:
    """Refuse a kernel that a run cannot use. Imports nothing, so it can run first.

    `flag` is the one that names it. Raises SettingsError if the run's other settings rule it out,
    DitflowError if this machine does.
    """
    kernel = KERNELS[name]
    if needs_gradient and not kernel.gradient:
        raise SettingsError(
            f"{name} has no gradient, and this run optimises: use --attention sdpa, --loss x0 or "
            f"--no-guidance (--attention-forward {name} is for the forwards without gradient)"
        )
    if deterministic and not kernel.repeatable:
        raise SettingsError(
            f"{name} is not reproducible bit for bit, and --deterministic is on: use {flag} sdpa"
        )
    if why := kernel.missing(device, dtype):
        available = [
            other
            for other, row in KERNELS.items()
            if not row.missing(device, dtype) and (row.gradient or not needs_gradient)
        ]
        raise DitflowError(f"{flag} {name}: {why}; available here: {', '.join(available)}")


def load_attention(name: str) -> Attend:
    """Import a kernel's package and return the kernel. Raises DitflowError if the import fails."""
    kernel = KERNELS[name]
    if kernel.package:
        try:
            import_module(kernel.package)
        except (ImportError, OSError, RuntimeError) as error:
            reason = first_line(error)
            raise DitflowError(
                f"attention {name}: {kernel.package} cannot be loaded ({reason}); "
                f"{kernel.install}, or use sdpa"
            ) from None
    return kernel.attend


def _names(dtypes) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
