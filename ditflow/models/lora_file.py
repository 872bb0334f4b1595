"""Reads a LoRA file: which layer each tensor belongs to, and how strongly it changes that layer.

Accepted are the layouts of diffusers, old and new, of peft, kohya and VideoX-Fun. Every tensor must be used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor, nn

from ditflow.errors import DitflowError, shown
from ditflow.models.tensors import FLOATS, OtherName, counted
from ditflow.models.trust import Header, read_headers, read_json
from ditflow.schema import Flag, ListOf, MapOf, Number, OneOf, OrNull, Schema, Text, Whole, problem

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as peft saves a LoRA
PREFIXES = (  # of a layer's name; several may follow each other
    "base_model.model.",
    "diffusion_model.",
    "model.",
    "module.",
    "unet.",
    "dit.",
    "pipe.",
    "net.",
    "lora_unet_",
    "lora_transformer_",
    "lora_dit_",
    "lycoris_",
    "_",
)
ROLES = {  # the end of a tensor's name; `.default` and the like are names of an adapter
    "lora_A": re.compile(r"\.(lora_A|lora_down|lora_linear_layer\.down)(\.(?!bias$)[\w-]+)?(\.weight)?$"),
    "lora_B": re.compile(r"\.(lora_B|lora_up|lora_linear_layer\.up)(\.(?!bias$)[\w-]+)?(\.weight)?$"),
    "alpha": re.compile(r"\.(lora_)?alpha$"),
}
RANK, ALPHA = Whole(1, 1 << 16), Number(-1e6, 1e6)
# regular expressions for layers' names, without groups and with few repetitions, which could take for ever
LAYER = r"[^*+?(){}]{0,200}([*+?][^*+?(){}]{0,200}){0,3}"
SETTINGS = Schema(  # of peft's LoraConfig
    {
        "r": RANK,
        "lora_alpha": ALPHA,
        "rank_pattern": OrNull(MapOf(RANK, LAYER)),
        "alpha_pattern": OrNull(MapOf(ALPHA, LAYER)),
        "use_rslora": OrNull(Flag()),
    }
)
ONLY = Schema(  # settings with which up @ down is the whole change of a weight
    {
        "use_dora": OneOf((None, False)),
        "peft_type": OneOf((None, "LORA")),
        "init_lora_weights": OneOf((None, True, False, "gaussian", "orthogonal", "eva")),
        "bias": OneOf((None, "none")),
        "lora_bias": OneOf((None, False)),
        "use_qalora": OneOf((None, False)),
        "modules_to_save": OneOf((None, [])),
        "target_parameters": OneOf((None, [])),
        "layer_replication": OneOf((None, [])),
    }
)
LAYERS = ListOf(Text(), 1, 10_000)


class Change(NamedTuple):
    """The change of a layer's weight: factor * up @ down."""

    layer: str
    up: Tensor  # [outputs, rank] float32
    down: Tensor  # [rank, inputs] float32
    factor: float


def read_changes(
    path: Path, network: nn.Module, other_name: OtherName = str, part: str | None = None
) -> Iterator[Change]:
    """The changes that a LoRA file makes to a network, which may be on the meta device.

    `other_name`: what a layer of the network may also be called. `part`: read only the tensors whose names
    say that they are for this transformer; None: all.

    Raises DitflowError if the file has a tensor or a setting that cannot be used, lacks one, or holds NaN.
    """
    headers, prefix = lora_headers(path), f"{part or 'transformer'}."
    if part:
        headers = {name: header for name, header in headers.items() if says(name, part)}
    with _readable(path):
        settings = _settings(path, prefix)
    SETTINGS.check(path, settings)
    for name in {**(settings.get("rank_pattern") or {}), **(settings.get("alpha_pattern") or {})}:
        try:
            re.compile(name)
        except re.error as error:
            raise DitflowError(f"--lora {path}: the pattern {shown(name)} is wrong: {error}") from None
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))
    }
    names = {other_name(name): name for name in shapes} | {name: name for name in shapes}
    found, unused = _by_layer(headers, names, (*PREFIXES, prefix))
    problems = {"unused": unused, **_problems(found, headers, shapes, settings)}
    if any(problems.values()):
        raise DitflowError(
            f"--lora {path} does not fit this model ({counted(problems)}): give a LoRA for this model"
        )
    ONLY.check(path, settings)
    changes_something = False
    with safe_open(path, "pt") as file:
        for layer, names in found.items():
            tensors = {role: file.get_tensor(name).float() for role, name in names.items()}
            for role, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise DitflowError(
                        f"--lora {path} holds NaN or infinity in {names[role]}: download it again"
                    )
            up, down = tensors["lora_B"].flatten(1), tensors["lora_A"].flatten(1)
            stated = _alpha(layer, settings)
            alpha = tensors["alpha"].item() if "alpha" in tensors else stated
            if stated not in (None, alpha):
                raise DitflowError(
                    f"--lora {path}: {names['alpha']} is {alpha:g}, and its settings say {stated:g}: give a "
                    "file with one of them"
                )
            if alpha == 0:
                raise DitflowError(f"--lora {path}: the alpha of {layer} is 0, so it would change nothing")
            root = math.sqrt if settings.get("use_rslora") else float
            changes_something = changes_something or bool(up.any() and down.any())
            yield Change(layer, up, down, (len(down) if alpha is None else alpha) / root(len(down)))
    if not changes_something:
        raise DitflowError(
            f"--lora {path} would change nothing: it holds {'only zeros' if found else 'no tensors'}"
        )


def lora_headers(path: Path) -> dict[str, Header]:
    """What a LoRA file holds, by the tensors' names. Raises DitflowError if it cannot be read."""
    with _readable(path):
        return read_headers(path)


def says(tensor: str, part: str) -> bool:
    """Whether a tensor's name says that it is for this transformer, as `transformer_2.blocks...` does."""
    return f".{part}." in f".{tensor}"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        raise DitflowError(f"--lora {path} is damaged ({error}): download it again") from None


def _by_layer(
    headers: Mapping[str, Header], layers: Mapping[str, str], prefixes: Sequence[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The names of each layer's tensors by role, and the names that cannot be placed.

    `layers`: the network's layers by every name that they have.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    known = {name.replace(".", "_"): layer for name, layer in layers.items()} | dict(layers)
    found: dict[str, dict[str, str]] = {}
    unused = []
    for name in headers:
        (converted,) = convert_unet_state_dict_to_peft({name: None})
        role, place = _role(converted.replace("_orig_mod.", ""))
        layer = _known(place, known, prefixes)
        if layer is None or role in found.get(layer, ()):
            unused.append(name)
        else:
            found.setdefault(layer, {})[role] = name
    return found, unused


def _role(name: str) -> tuple[str, str]:
    """A tensor's role and its layer's name; empty for what is no tensor of a LoRA."""
    for role, pattern in ROLES.items():
        if match := pattern.search(name):
            return role, name[: match.start()]
    return "", ""


def _known(name: str, known: Mapping[str, str], prefixes: Sequence[str]) -> str | None:
    """The network's name of a layer; None if it has no such layer."""
    while name not in known:
        prefix = next(filter(name.startswith, prefixes), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return known[name]


def _problems(
    found: Mapping[str, Mapping[str, str]],
    headers: Mapping[str, Header],
    shapes: Mapping[str, tuple[int, ...]],
    settings: Mapping[str, Any],
) -> dict[str, list[str]]:
    """What is missing and what does not fit."""
    targets = settings.get("target_modules")
    whole = problem(LAYERS, targets) is None and not any(
        settings.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern")
    )
    wanted = [layer for layer in shapes if whole and any(_is_named(layer, target) for target in targets)]
    missing = [f"{layer}.lora_A" for layer in wanted if layer not in found]
    wrong = []
    for layer, names in found.items():
        absent = [f"{layer}.{role}" for role in ("lora_A", "lora_B") if role not in names]
        missing += absent
        if absent:
            continue
        down, up = headers[names["lora_A"]], headers[names["lora_B"]]
        rank, (outputs, *inputs) = down.shape[0] if down.shape else 0, shapes[layer]
        stated = _matching(settings.get("rank_pattern"), layer) or settings.get("r") or rank
        if rank != stated:
            wrong.append(f"{names['lora_A']} has rank {rank}, its settings say {stated}")
        if _full(down.shape, 1 + len(inputs)) != (rank, *inputs) or not rank:
            wrong.append(f"{names['lora_A']} is {list(down.shape)}, expected {[rank, *inputs]}")
        if _full(up.shape, 1 + len(inputs)) != (outputs, rank, *[1] * (len(inputs) - 1)):
            wrong.append(f"{names['lora_B']} is {list(up.shape)}, expected {[outputs, rank]}")
        if "alpha" in names and math.prod(headers[names["alpha"]].shape) != 1:
            wrong.append(f"{names['alpha']} is {list(headers[names['alpha']].shape)}, expected one number")
        wrong += [
            f"{name} is {headers[name].kind}"
            for role, name in names.items()
            if role != "alpha" and headers[name].kind not in FLOATS
        ]
    return {"missing": missing, "unfit": wrong}


def _full(shape: tuple[int, ...], least: int) -> tuple[int, ...]:
    """A shape with ones added at its end, or left out there, down to `least` dimensions."""
    while len(shape) > least and shape[-1] == 1:
        shape = shape[:-1]
    return shape + (1,) * (least - len(shape))


def _settings(path: Path, prefix: str) -> dict[str, Any]:
    """The LoraConfig of a file: beside it as peft writes it, or in its header as trainers and diffusers do.

    `prefix`: before the names in a header, which may hold the settings of several transformers.

    Raises ValueError if it cannot be read.
    """
    if path.name == PEFT_FILE and path.with_name(PEFT_CONFIG).exists():
        return read_json(path.with_name(PEFT_CONFIG))
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    for key in ("lora_adapter_metadata", "lora_config"):
        if key in header:
            found = json.loads(header[key])
            if not isinstance(found, dict):
                raise ValueError(f"{key} is not a mapping of names to values")
            plain = {name.removeprefix(prefix): value for name, value in found.items()}
            return {name: value for name, value in plain.items() if "." not in name}
    names = {"r": "r", "rank": "r", "lora_alpha": "lora_alpha", "alpha": "lora_alpha"}
    return {names[key]: json.loads(value) for key, value in header.items() if key in names}


def _alpha(layer: str, settings: Mapping[str, Any]) -> float | None:
    """The alpha that the settings state; None means the rank."""
    given = _matching(settings.get("alpha_pattern"), layer)
    return settings.get("lora_alpha") if given is None else given


def _matching(patterns: Mapping[str, Any] | None, layer: str) -> Any:
    """The value of the first pattern that matches the end of a layer's name, as in peft."""
    found = (value for name, value in (patterns or {}).items() if re.match(rf"(.*\.)?({name})$", layer))
    return next(found, None)


def _is_named(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")
