"""Stores the transformer's weights in 8 or 4 bits and unpacks them where they are used.

Only `full` is exact. The other kinds round the weights once; forward and backward compute with the rounded
weights in the model's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditflow.errors import DitflowError, SettingsError
from ditflow.files import regular_file

NF4_BLOCK = 64  # weights that share a scale

Unpack = Callable[..., Tensor]  # (dtype, *stored) -> weight [outputs, inputs]


class StoredLinear(nn.Module):
    """A frozen linear layer that unpacks its weight from `stored` in the forward and again in backward.

    A graph through it holds only the stored tensors. They are parameters, so that they are streamed with
    their block. Several products can share one unpacked weight (see `unpacked`).
    """

    def __init__(self, unpack: Unpack, stored: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.unpack, self.dtype = unpack, dtype
        self.stored = nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in stored)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.unpacked: Tensor | None = None  # the weight, inside `unpacked`

    @property
    def weight(self) -> Tensor:
        """The weight [outputs, inputs], unpacked anew on each access outside `unpacked`."""
        return self.unpack(self.dtype, *self.stored) if self.unpacked is None else self.unpacked

    def forward(self, inputs: Tensor) -> Tensor:
        if self.unpacked is not None:
            return F.linear(inputs, self.unpacked, self.bias)
        if torch.compiler.is_compiling():
            # the compiler would save the unpacked weight for backward; a checkpoint unpacks it again
            stored = [self.stored[index] for index in range(len(self.stored))]  # torch 2.10 cannot trace `*`
            weight = checkpoint(self.unpack, self.dtype, *stored, use_reentrant=False)
            return F.linear(inputs, weight, self.bias)
        return _Product.apply(inputs, self.bias, self.unpack, *self.stored)


class _Product(torch.autograd.Function):
    """inputs @ weight.T + bias, with a gradient only for the inputs."""

    @staticmethod
    def forward(ctx, inputs: Tensor, bias: Tensor | None, unpack: Unpack, *stored: Tensor) -> Tensor:
        ctx.unpack = unpack
        ctx.save_for_backward(*stored)
        return F.linear(inputs, unpack(inputs.dtype, *stored), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        stored = ctx.saved_tensors
        return gradient @ ctx.unpack(gradient.dtype, *stored), None, None, *(None for _ in stored)


@contextmanager
def unpacked(part: nn.Module) -> Iterator[None]:
    """Unpack the stored weights of a part once, for all products in this context.

    Takes the memory of the unpacked weights, so a part should be small. Changes no result.
    """
    layers = [layer for layer in part.modules() if isinstance(layer, StoredLinear)]
    try:
        for layer in layers:
            layer.unpacked = layer.weight
        yield
    finally:
        for layer in layers:
            layer.unpacked = None


def check_weights(kind: str) -> None:
    """Raises SettingsError for an unknown kind, DitflowError if a file or a package is missing."""
    is_file = kind.endswith(".gguf")
    if kind not in ("full", *PACKINGS) and not is_file:
        accepted = ", ".join(("full", *PACKINGS))
        raise SettingsError(f"--weights {kind}: unknown; accepted: {accepted} or a .gguf file")
    if is_file:
        try:
            regular_file(Path(kind))
        except OSError:
            raise DitflowError(f"--weights {kind}: no such file") from None
    package = "gguf" if is_file else "bitsandbytes" if kind == "nf4" else None
    if package and find_spec(package) is None:
        raise DitflowError(f'--weights {kind} needs {package}: pip install "ditflow[quantize]"')


def store_weights(blocks: nn.ModuleList, parts: Sequence[str], kind: str, device: torch.device) -> None:
    """Store the linear layers in `parts` of each block as `fp8`, `int8` or `nf4`; `full` changes nothing.

    Each layer is packed on `device` and moved back to where it was. Two kinds of layer are not packed. Layers
    outside the blocks are only 0.3 % of CogVideoX-5B's weights, and come first or last for every latent.
    Layers that modulate the norms see a single token, the timestep: their error would be the same for all
    video tokens, and unpacking would cost more than the product.
    """
    if kind == "full":
        return
    pack, unpack = PACKINGS[kind]
    for block in blocks:
        for part in map(block.get_submodule, parts):
            for name, layer in list(part.named_modules()):
                if isinstance(layer, nn.Linear):
                    weight = layer.weight.detach()
                    stored = [tensor.to(weight.device) for tensor in pack(weight.to(device))]
                    part.set_submodule(name, StoredLinear(unpack, stored, layer.bias, weight.dtype))


def pack_rows(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values scaled to the range of `dtype`, and a float32 scale for each row (output)."""
    most = (torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).max
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / most
    scaled = weight / scale
    return (scaled if dtype.is_floating_point else scaled.round_()).to(dtype), scale


def unpack_rows(dtype: torch.dtype, values: Tensor, scale: Tensor) -> Tensor:
    return values.to(dtype).mul_(scale)


def pack_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights per byte [outputs, inputs / 2], and a float32 scale for each `NF4_BLOCK` weights."""
    import bitsandbytes  # noqa: F401  registers the operators

    packed, scale = torch.ops.bitsandbytes.quantize_4bit(weight.contiguous(), NF4_BLOCK, "nf4", torch.uint8)
    return packed.view(len(weight), -1), scale


def unpack_nf4(dtype: torch.dtype, packed: Tensor, scale: Tensor) -> Tensor:
    shape = [len(packed), 2 * packed.shape[1]]
    flat = packed.view(-1, 1)
    return torch.ops.bitsandbytes.dequantize_4bit(flat, scale, NF4_BLOCK, "nf4", shape, dtype)


def pack_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    return pack_rows(weight, torch.float8_e4m3fn)


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    return pack_rows(weight, torch.int8)


PACKINGS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Unpack]] = {
    "fp8": (pack_fp8, unpack_rows),
    "int8": (pack_int8, unpack_rows),
    "nf4": (pack_nf4, unpack_nf4),
}
