"""Attention kernels by name, a row each; a row's package is imported when a model is built with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditflow.errors import DitflowError, SettingsError

# query, key, value [1, tokens, heads, head_dim] -> the same
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's own choice of kernel."""
    by_head = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*by_head).transpose(1, 2)


def cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """cuDNN's kernel, through torch."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(query, key, value)


def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention 2 of the package itself."""
    from flash_attn import flash_attn_func

    return flash_attn_func(query, key, value, deterministic=torch.are_deterministic_algorithms_enabled())


def xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """xFormers' own choice of kernel."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(query, key, value)


def sage(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SageAttention: products in 8 bits, not exact."""
    from sageattention import sageattn

    return sageattn(query, key, value, tensor_layout="NHD")


@dataclass(frozen=True)
class Kernel:
    """One way to compute softmax attention, and what it asks for."""

    attend: Attend
    package: str | None = None  # what it is imported from
    install: str = ""  # how the package comes to the machine
    architecture: tuple[int, int] | None = (8, 0)  # least compute capability; None: any device at all
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
    gradient: bool = True
    repeatable: bool = True  # bit for bit, where deterministic algorithms are asked for

    def missing(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it is not available here, or None; nothing is imported for it."""
        if self.package and not find_spec(self.package):
            return f"{self.package} is not installed ({self.install})"
        if self.architecture is None:
            return None
        if device.type != "cuda":
            return f"needs a CUDA GPU, and this run computes on {device.type}"
        if torch.cuda.get_device_capability(device) < self.architecture:
            return f"needs a GPU of compute capability {'.'.join(map(str, self.architecture))} or later"
        if dtype not in self.dtypes:
            return f"computes in {_names(self.dtypes)}, and --dtype is {_names([dtype])}"
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


def check_attention(
    name: str, needs_gradient: bool, device: torch.device, dtype: torch.dtype, deterministic: bool = False
) -> None:
    """Refuse a kernel that cannot do what a run asks of it; imports nothing, so that it can come first.

    Raises SettingsError where the run's other settings rule it out, DitflowError where this machine does.
    """
    kernel = KERNELS[name]
    if needs_gradient and not kernel.gradient:
        raise SettingsError(
            f"{name} has no gradient, and this run optimises: use --attention sdpa, or --no-guidance"
        )
    if deterministic and not kernel.repeatable:
        raise SettingsError(
            f"{name} gives other bits each time, and --deterministic is on: use --attention sdpa"
        )
    if why := kernel.missing(device, dtype):
        there = [
            other
            for other, row in KERNELS.items()
            if not row.missing(device, dtype) and (row.gradient or not needs_gradient)
        ]
        raise DitflowError(f"--attention {name}: {why}; available here: {', '.join(there)}")


def load_attention(name: str) -> Attend:
    """A kernel as a function, its package imported; raises DitflowError where that cannot be loaded."""
    kernel = KERNELS[name]
    if kernel.package:
        try:
            import_module(kernel.package)
        except (ImportError, OSError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DitflowError(
                f"--attention {name}: {kernel.package} cannot be loaded ({reason}); "
                f"{kernel.install}, or use --attention sdpa"
            ) from None
    return kernel.attend


def _names(dtypes) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
