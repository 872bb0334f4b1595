"""Adds LoRA weights to a transformer when it is loaded, so that the run itself costs nothing extra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ditflow.errors import DitflowError
from ditflow.files import PICKLE_SUFFIXES, refuse_pickle
from ditflow.models.experts import ONE, Expert, split_expert
from ditflow.models.hub import hub_lora, is_hub_id, lora_name
from ditflow.models.lora_file import Change, lora_headers, read_changes, says
from ditflow.models.tensors import OtherName


class Lora(NamedTuple):
    """A LoRA as it is given on the command line: `[high=|low=]FILE_OR_ID[:scale]`."""

    source: str
    scale: float
    expert: str = ""  # the name of the one that it is for, if that is said

    def __str__(self) -> str:
        return f"{self.expert}{'=' if self.expert else ''}{self.source}:{self.scale}"


def add_lora(
    network: nn.Module,
    given: str,
    other_name: OtherName = str,
    experts: Sequence[Expert] = ONE,
    expert: int = 0,
) -> None:
    """Add `[high=|low=]FILE_OR_ID[:scale]` to the weights; each is computed in float32 and rounded once.

    `other_name`: what a layer of the network may also be called in the file. `experts`: the model's
    transformers, of which `network` is number `expert`. A LoRA for another one changes nothing.

    Raises DitflowError if the LoRA cannot be read or does not fit the network.
    """
    for change in _changes(network, given, other_name, experts, expert):
        parameter = network.get_submodule(change.layer).weight
        added = (change.up * change.factor) @ change.down
        parameter.data = (parameter.float() + added.view_as(parameter)).to(parameter.dtype)


def check_fit(
    network: nn.Module,
    given: str,
    dtype: torch.dtype,
    other_name: OtherName = str,
    experts: Sequence[Expert] = ONE,
    expert: int = 0,
) -> None:
    """Make all checks of `add_lora`, and that the changes are in the range of weights in `dtype`.

    The network may be on the meta device. Downloads a LoRA of the hub.
    """
    for change in _changes(network, given, other_name, experts, expert):
        # a product of two vectors is at most that of their lengths
        longest = [
            tensor.double().norm(dim=dim).max().item() for tensor, dim in ((change.up, 1), (change.down, 0))
        ]
        if abs(change.factor) * math.prod(longest) > torch.finfo(dtype).max:
            raise DitflowError(
                f"--lora {given} adds more to {change.layer} than weights in {dtype} can be: give a smaller "
                "scale, such as 0.8, or another LoRA"
            )


def _changes(
    network: nn.Module, given: str, other_name: OtherName, experts: Sequence[Expert], expert: int
) -> Iterator[Change]:
    """The changes of an expert's network, with the LoRA's scale in their factors."""
    lora, part = check_lora(given), experts[expert].part
    path = lora_file(lora.source)
    changed = changed_parts(path, lora.expert, experts)
    if part in changed:
        for change in read_changes(path, network, other_name, changed[part]):
            yield change._replace(factor=lora.scale * change.factor)


def changed_parts(path: Path, told: str, experts: Sequence[Expert]) -> dict[str, str | None]:
    """The transformers that a LoRA file changes, each with what `read_changes` takes as `part`.

    `told`: the name of the expert that the file is for; if empty, the names of its tensors must say it.

    Raises DitflowError if they do not, or contradict it.
    """
    if len(experts) == 1:
        return {experts[0].part: None}
    parts = [expert.part for expert in experts]
    said = {}  # the parts that names say, or None, each with one of these names
    for name in lora_headers(path):
        said[next((part for part in parts if says(name, part)), None)] = name
    # the first transformer's name proves nothing: files for models with one transformer have it too
    tells = any(part in said for part in parts[1:])
    wanted = next((expert.part for expert in experts if expert.name == told), None)
    if wanted and (not tells or said.keys() == {wanted}):
        return {wanted: wanted if tells else None}
    if wanted:
        raise DitflowError(f"--lora {path} says itself which transformers it changes; leave out {told}=")
    if not tells:
        options = " or ".join(f"--lora {expert.name}={path}" for expert in experts)
        raise DitflowError(
            f"--lora {path} does not say which of the model's {len(experts)} transformers it changes; "
            f"give {options} (more or less noise)"
        )
    if None in said:
        raise DitflowError(
            f"--lora {path}: {said[None]} does not say which transformer it changes, and other tensors do; "
            "give a complete file"
        )
    return {part: part for part in parts if part in said}


def check_lora(given: str) -> Lora:
    """Split what is given. Raises DitflowError if it cannot be a LoRA. Downloads nothing."""
    lora = split_lora(given)
    if not math.isfinite(lora.scale):
        raise DitflowError(
            f"--lora {given}: the scale {lora.scale} is not a finite number; give one such as 0.8"
        )
    if Path(lora.source).exists() or not is_hub_id(lora.source):
        lora_file(lora.source)
    return lora


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


def split_lora(given: str) -> Lora:
    """Split `[high=|low=]name:0.8`. Without a number after the colon, the scale is 1."""
    expert, given = split_expert(given)
    source, colon, scale = given.rpartition(":")
    if colon:
        try:
            return Lora(source, float(scale), expert)
        except ValueError:
            pass
    return Lora(given, 1.0, expert)
