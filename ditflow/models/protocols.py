"""What a guided loop asks of a model, whoever computes it and wherever the weights are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor


class Grid(NamedTuple):
    """Video tokens in patches; token index = (frame * height + row) * width + column."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Inputs:
    """One forward's inputs, batch 1. Latents and embedding stay float32; the model casts what it reads."""

    latents: Tensor  # [1, frames, channels, height, width]
    prompt: Tensor  # [1, text tokens, text channels]
    timestep: Tensor  # [1]
    embedding: Tensor  # rotary [2 (q, k), 2 (cos, sin), S, head_dim] or additive [1, S, channels]


class KeyValue(NamedTuple):
    """Keys and values of one block's video tokens, after norm and rotation."""

    key: Tensor  # [1, S, heads, head_dim]
    value: Tensor  # [1, S, heads, head_dim]


class QueryKey(NamedTuple):
    """Queries and keys of one block's video tokens, after norm and rotation."""

    query: Tensor  # [S, heads, head_dim]
    key: Tensor  # [S, heads, head_dim]


@dataclass(frozen=True)
class Until:
    """What is read, in which blocks. The forward ends with the deepest of them, as early in it as it can.

    `query_key` and `key_value` end before that block's attention; `output` after the block.
    """

    what: Literal["query_key", "key_value", "output"]
    blocks: tuple[int, ...]

    @property
    def deepest(self) -> int:
        return max(self.blocks)


Injected = Mapping[int, KeyValue]
Loss = Callable[[int, Any], Tensor]  # (block, what was read there) -> scalar float32
Variable = Literal["latents", "embedding"]


class Runner(Protocol):
    """Computes a backbone's forwards and gradients; the implementations differ in where memory goes."""

    backbone: Any

    def forward(self, several: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        """The model's prediction for each input, float32 [1, frames, channels, height, width], no gradient.

        All go through a block while its weights are there. `injected` holds for each of them.
        """

    def features(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        """What is read in each block, without gradient: QueryKey, KeyValue or output [S, channels]."""

    def gradient(
        self,
        loss: Loss,
        wrt: Variable,
        inputs: Inputs,
        injected: Injected,
        until: Until,
        scale: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        """The mean of `loss` over the blocks read, and `scale` times its gradient in float32."""
