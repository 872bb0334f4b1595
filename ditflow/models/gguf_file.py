"""Loads a transformer from a GGUF file. Its linear layers stay quantised."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor, nn

from ditflow.errors import DitflowError, first_line
from ditflow.models.precision import stays_float32
from ditflow.models.storage import StoredLinear
from ditflow.models.tensors import OtherName, counted


def load_gguf(
    path: Path,
    network: type[ModelMixin],
    config: Mapping[str, Any],
    dtype: torch.dtype,
    other_name: OtherName = str,
) -> ModelMixin:
    """Build a transformer with the file's weights.

    Linear layers that are quantised in the file stay quantised; everything else is converted to `dtype`.
    What diffusers keeps in float32 is in float32. `other_name`: what a layer may be called in the file,
    besides diffusers' name.

    Raises DitflowError if the file cannot be read or does not fit this model.
    """
    transformer, tensors = check_gguf(path, network, config, other_name)
    values = {}
    for name, tensor in tensors.items():
        value, place = torch.tensor(tensor.data), name.removesuffix(".weight")
        shape, precise = transformer.get_parameter(name).shape, stays_float32(transformer, name)
        kind = torch.float32 if precise else dtype
        if value.is_floating_point():
            values[name] = value.to(kind).reshape(shape)
            continue
        unpack = partial(unpack_gguf, tensor.tensor_type)
        layer = transformer.get_submodule(place) if place != name else None
        if isinstance(layer, nn.Linear) and not precise and tensor.tensor_type.name != "BF16":
            transformer.set_submodule(place, StoredLinear(unpack, [value], layer.bias, dtype))
        else:
            values[name] = unpack(kind, value.reshape(-1, value.shape[-1])).reshape(shape)
    transformer.load_state_dict(values, strict=False, assign=True)  # `_by_parameter` has compared all names
    return transformer


def check_gguf(
    path: Path, network: type[ModelMixin], config: Mapping[str, Any], other_name: OtherName = str
) -> tuple[ModelMixin, dict[str, Any]]:
    """The transformer without weights, and the file's tensors by its parameters; raises as `load_gguf`."""
    tensors = _read(path)
    with init_empty_weights():
        transformer = network.from_config(config)
    return transformer, _by_parameter(path, tensors, transformer, other_name)


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


def _by_parameter(
    path: Path, tensors: Mapping[str, Any], transformer: nn.Module, other_name: OtherName
) -> dict[str, Any]:
    """The tensors by the names of the parameters that they are for; exactly the transformer's."""
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.named_parameters()}
    names = {name: name for name in shapes}
    others = {_called(name, other_name): name for name in shapes}
    if tensors.keys() & (others.keys() - names.keys()):  # names that only the other layout has
        names = others
    found = {names[name]: tensor for name, tensor in tensors.items() if name in names}
    readable = ("F32", "F16", *(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES))
    problems = {
        "missing": [name for name in names if name not in tensors],
        "unexpected": [name for name in tensors if name not in names],
        "of another shape": [
            f"{tensor.name} is {list(_shape(tensor))}, expected {list(shapes[name])}"
            for name, tensor in found.items()
            if not _fits(_shape(tensor), shapes[name])
        ],
        f"of another type than {', '.join(readable)}": [
            f"{tensor.name} is {tensor.tensor_type.name}"
            for tensor in found.values()
            if tensor.tensor_type.name not in readable
        ],
    }
    if any(problems.values()):
        raise DitflowError(
            f"--weights {path} does not fit this model ({counted(problems)}): give weights of this model"
        )
    return found


def _called(parameter: str, other_name: OtherName) -> str:
    """A parameter's other name; families rename layers, and parameters that belong to no layer."""
    layer, _, own = parameter.rpartition(".")
    return f"{other_name(layer)}.{own}" if own in ("weight", "bias") else other_name(parameter)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether they are equal but for dimensions of one, which some writers of GGUF files leave out."""
    return [size for size in shape if size != 1] == [size for size in wanted if size != 1]


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))  # GGUF lists the innermost dimension first
