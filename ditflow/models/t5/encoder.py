"""Runs an encoder of T5's kind layer by layer, and makes one without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ditflow.models.protocols import Weights


def empty_encoder(
    kind: type[PreTrainedModel], config: Mapping[str, Any], dtype: torch.dtype
) -> PreTrainedModel:
    """An encoder with uninitialised weights, in the precisions in which transformers loads them.

    Raises ValueError for a configuration with which it could not compute.
    """
    # as in loading, no attention implementation of the config's own: it could be downloaded and run
    known = {key: value for key, value in config.items() if "attn_implementation" not in key}
    found = kind.config_class(**known, attn_implementation="sdpa")
    least = found.relative_attention_num_buckets // 4 + 1  # a quarter of the buckets are for single distances
    if (most := found.relative_attention_max_distance) < least:
        raise ValueError(f"its relative_attention_max_distance is {most}, expected at least {least}")
    encoder = kind(found)
    if dtype == torch.float16:
        for name, layer in encoder.named_modules():
            if name.endswith(".wo"):  # transformers loads this layer in float32, as float16 overflows
                layer.weight = nn.Parameter(layer.weight.float())
    return encoder


@contextmanager
def streamed(layers: nn.ModuleList, weights: Weights) -> Iterator[None]:
    """During one forward, bring each layer's weights to the device before it computes."""
    walk = weights.walk(range(len(layers)))

    def bring(*_: object) -> None:
        next(walk)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(bring))
        yield
    next(walk, None)  # end the walk, as a loop over it would
