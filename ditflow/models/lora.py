"""Adds LoRA weights to a transformer when it is loaded, so that the run itself costs nothing extra."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from ditflow.errors import DitflowError
from ditflow.files import PICKLE_SUFFIXES, refuse_pickle
from ditflow.models.hub import hub_lora, is_hub_id, lora_name
from ditflow.models.lora_file import OtherName, read_changes


def add_lora(network: nn.Module, given: str, other_name: OtherName = str) -> None:
    """Add `FILE_OR_ID[:scale]` to the weights; each is computed in float32 and rounded once.

    `other_name`: what a layer of the network may also be called in the file.

    Raises DitflowError if the LoRA cannot be read or does not fit the network.
    """
    source, scale = check_lora(given)
    for change in read_changes(lora_file(source), network, other_name):
        parameter = network.get_submodule(change.layer).weight
        added = (change.up * (scale * change.factor)) @ change.down
        parameter.data = (parameter.float() + added.view_as(parameter)).to(parameter.dtype)


def check_fit(network: nn.Module, given: str, dtype: torch.dtype, other_name: OtherName = str) -> None:
    """Make all checks of `add_lora`, and that the changes are in the range of weights in `dtype`.

    The network may be on the meta device. Downloads a LoRA of the hub.
    """
    source, scale = check_lora(given)
    for change in read_changes(lora_file(source), network, other_name):
        # a product of two vectors is at most that of their lengths
        longest = [
            tensor.double().norm(dim=dim).max().item() for tensor, dim in ((change.up, 1), (change.down, 0))
        ]
        if abs(scale * change.factor) * math.prod(longest) > torch.finfo(dtype).max:
            raise DitflowError(
                f"--lora {given} adds more to {change.layer} than weights in {dtype} can be: give a smaller "
                "scale, such as 0.8, or another LoRA"
            )


def check_lora(given: str) -> tuple[str, float]:
    """Split `FILE_OR_ID[:scale]` into source and scale. Raises DitflowError if it cannot be a LoRA.

    Downloads nothing.
    """
    source, scale = split_scale(given)
    if not math.isfinite(scale):
        raise DitflowError(f"--lora {given}: the scale {scale} is not a finite number; give one such as 0.8")
    if Path(source).exists() or not is_hub_id(source):
        lora_file(source)
    return source, scale


def lora_file(source: str) -> Path:
    """The file of a LoRA given as a file, a folder or a hub id; the hub's cache is used first.

    Raises DitflowError if there is none.
    """
    path = Path(source)
    if is_hub_id(source) and not path.exists():
        return hub_lora(source)
    if source and path.is_dir():
        names = [entry.name for entry in path.iterdir()]
        pickles = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
        name = lora_name(names) or next(iter(pickles), None)
        if name is None:
            raise DitflowError(f"--lora {source}: no or several .safetensors files; give one of them")
        path = path / name
    if path.suffix in PICKLE_SUFFIXES:
        refuse_pickle(path)
    if not path.suffix:
        raise DitflowError(f"--lora {source!r}: give a .safetensors file, a folder or OWNER/NAME")
    if path.suffix != ".safetensors":
        raise DitflowError(f"--lora {path}: only .safetensors files are read")
    if not path.exists():
        raise DitflowError(f"--lora {path}: no such file")
    return path


def split_scale(given: str) -> tuple[str, float]:
    """Split `name:0.8` into name and scale. Without a number after the colon, the scale is 1."""
    source, colon, scale = given.rpartition(":")
    if colon:
        try:
            return source, float(scale)
        except ValueError:
            pass
    return given, 1.0
