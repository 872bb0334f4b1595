"""Loads a transformer from a GGUF file with diffusers' parameter names. Its linear layers stay quantised."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from ditflow.errors import DitflowError, first_line
from ditflow.models.precision import stays_float32
from ditflow.models.storage import StoredLinear


def load_gguf(
    path: Path, network: type[ModelMixin], config: Mapping[str, Any], dtype: torch.dtype
) -> ModelMixin:
    """Build a transformer with the file's weights.

    Linear layers that are quantised in the file stay quantised; everything else is converted to `dtype`.
    What diffusers keeps in float32 is in float32.

    Raises DitflowError if the file cannot be read or does not fit this model.
    """
    transformer, tensors = check_gguf(path, network, config)
    values = {}
    for name, tensor in tensors.items():
        value, place = torch.tensor(tensor.data), name.removesuffix(".weight")
        precise = stays_float32(transformer, name)
        kind = torch.float32 if precise else dtype
        if value.is_floating_point():
            values[name] = value.to(kind)
            continue
        unpack = partial(unpack_gguf, tensor.tensor_type)
        layer = transformer.get_submodule(place) if place != name else None
        if isinstance(layer, nn.Linear) and not precise and tensor.tensor_type.name != "BF16":
            transformer.set_submodule(place, StoredLinear(unpack, [value], layer.bias, dtype))
        else:
            values[name] = unpack(kind, value.flatten(0, -2)).reshape(_shape(tensor))
    transformer.load_state_dict(values, strict=False, assign=True)  # `_check` has compared all names
    return transformer


def check_gguf(
    path: Path, network: type[ModelMixin], config: Mapping[str, Any]
) -> tuple[ModelMixin, dict[str, Any]]:
    """The transformer without weights, and the file's tensors by name; raises as `load_gguf`."""
    tensors = _read(path)
    # fake tensors take no memory as they are, and accelerate cannot move them with torch 2.10
    with nullcontext() if is_fake(torch.empty(0)) else init_empty_weights():
        transformer = network.from_config(config)
    _check(path, tensors, transformer)
    return transformer, tensors


def unpack_gguf(kind: int, dtype: torch.dtype, stored: Tensor) -> Tensor:
    """Quantised bytes [rows, bytes in a row] as weights; `kind` is a gguf.GGMLQuantizationType."""
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions

    sizes = GGML_QUANT_SIZES[kind]  # weights in a block, bytes in a block
    blocks = stored.reshape(-1, sizes[1])
    return dequantize_functions[kind](blocks, *sizes).reshape(len(stored), -1).to(dtype)


def _read(path: Path) -> dict[str, Any]:
    """The file's tensors by name."""
    from gguf import GGUFReader

    try:
        return {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    except (OSError, ValueError, IndexError, KeyError) as error:
        reason = first_line(error)
        raise DitflowError(f"--weights {path}: not a complete GGUF file ({reason})") from None


def _check(path: Path, tensors: dict[str, Any], transformer: nn.Module) -> None:
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    wanted = {name: tuple(tensor.shape) for name, tensor in transformer.named_parameters()}
    found = {name: _shape(tensor) for name, tensor in tensors.items()}
    for name in sorted(wanted | found):
        if wanted.get(name) != found.get(name):
            raise DitflowError(
                f"--weights {path}: {name} is {found.get(name, 'missing')} in the file and "
                f"{wanted.get(name, 'missing')} in the model; give this model's weights, by diffusers' names"
            )
    for name, tensor in tensors.items():
        kind = tensor.tensor_type
        if kind.name not in ("F32", "F16") and kind not in SUPPORTED_GGUF_QUANT_TYPES:
            known = ", ".join(supported.name for supported in SUPPORTED_GGUF_QUANT_TYPES)
            raise DitflowError(f"--weights {path}: {name} is {kind.name}; accepted: F32, F16, {known}")


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))  # GGUF lists the innermost dimension first
