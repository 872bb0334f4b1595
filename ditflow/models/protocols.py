"""The model seam: what the program asks of a model, and what every family implements.

Nothing outside `ditflow.models.<family>` knows a model's class, its tensors' layout or its scheduler's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn


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
    timestep: Tensor  # [1], of `Transformer.timestep_dtype`; 0 is the noise level of clean latents
    embedding: Tensor  # rotary [2 (q, k), 2 (cos, sin), S, head_dim] or additive [1, S, channels]


@dataclass(frozen=True)
class Texts:
    """The three encoded texts of a run, each [1, text tokens, text channels]."""

    prompt: Tensor
    negative_prompt: Tensor
    source_prompt: Tensor


Carried = tuple[Tensor, ...]
"""The activations that blocks change: video tokens [1, S, channels] first, then what attends with them.

Checkpointing keeps these, and only the first depends on the latents and the embedding.
"""


@dataclass(frozen=True)
class Shared:
    """What all blocks read and none changes."""

    time: Tensor  # the embedded timestep
    rope: Tensor | None = (
        None  # [2 (q, k), 2 (cos, sin), S, head_dim]; None: `embed` adds positions to tokens
    )
    text: Tensor | None = None  # [1, text tokens, channels], for cross-attention


@dataclass(frozen=True)
class AttentionInputs:
    """A block's self-attention just before it is computed."""

    query: Tensor  # [1, tokens, heads, head_dim]
    key: Tensor  # [1, tokens, heads, head_dim]
    value: Tensor  # [1, tokens, heads, head_dim]
    video: slice  # which of the tokens are the video's
    gates: Carried  # what `add_attention` multiplies the attention's output by

    @property
    def query_key(self) -> QueryKey:
        return QueryKey(self.query[0, self.video], self.key[0, self.video])

    @property
    def key_value(self) -> KeyValue:
        return KeyValue(self.key[:, self.video], self.value[:, self.video])

    def with_video(self, given: KeyValue) -> AttentionInputs:
        """The same with other keys and values for the video tokens; all other tokens keep their own."""
        start, stop, _ = self.video.indices(self.key.shape[1])
        key, value = (
            torch.cat([mine[:, :start], theirs, mine[:, stop:]], dim=1)
            for mine, theirs in zip((self.key, self.value), given, strict=True)
        )
        return replace(self, key=key, value=value)


class KeyValue(NamedTuple):
    """Keys and values of one block's video tokens, after norm and rotation."""

    key: Tensor  # [1, S, heads, head_dim]
    value: Tensor  # [1, S, heads, head_dim]


class QueryKey(NamedTuple):
    """Queries and keys of one block's video tokens, after norm and rotation."""

    query: Tensor  # [S, heads, head_dim]
    key: Tensor  # [S, heads, head_dim]


@dataclass(frozen=True)
class Capture:
    """What to read in which blocks. The forward stops as early as possible in the deepest captured block.

    `query_key` and `key_value` are read before a block's attention, `output` after the block.
    """

    what: Literal["query_key", "key_value", "output"]
    blocks: tuple[int, ...]

    @property
    def deepest(self) -> int:
        return max(self.blocks)


Injected = Mapping[int, KeyValue]  # by block
Loss = Callable[[int, Any], Tensor]  # (block, what was read there) -> scalar float32
Variable = Literal["latents", "embedding"]
SchedulerState = Mapping[str, Tensor]
"""All that a schedule's next step depends on beside its index: generator state, histories, counters.

Only the schedule reads it. Checkpoints store its tensors by name; `latents` and `embedding` are not free.
"""


class Transformer(Protocol):
    """A frozen video transformer as embed -> blocks -> head; each block splits at its self-attention."""

    network: nn.Module  # the blocks and everything around them
    blocks: nn.ModuleList
    embedding_kind: Literal["rotary", "additive"]
    timestep_dtype: torch.dtype  # of `Inputs.timestep`, as the family's schedules make it

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def grid(self, latents: Tensor) -> Grid:
        """The patches of latents [1, frames, channels, height, width]."""

    def embedding(self, grid: Grid) -> Tensor:
        """The model's own positional embedding on a grid, float32 (see `Inputs.embedding`)."""

    def embed(self, inputs: Inputs) -> tuple[Carried, Shared]:
        """What enters the first block."""

    def prepare(self, index: int, carried: Carried, shared: Shared) -> AttentionInputs:
        """The first part of a block: everything before its self-attention."""

    def key_value(self, index: int, carried: Carried, shared: Shared) -> KeyValue:
        """`prepare(...).key_value`, without computing anything else."""

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """Softmax attention: [1, tokens, heads, head_dim]."""

    def add_attention(
        self,
        index: int,
        carried: Carried,
        shared: Shared,
        inputs: AttentionInputs,
        attended: Tensor,  # [1, tokens, heads, head_dim]
    ) -> Carried:
        """Everything between a block's self-attention and its feed-forward, cross-attention included."""

    def feed_forward(self, index: int, carried: Carried, shared: Shared) -> Carried:
        """The last part of a block: its feed-forward, added token by token."""

    def feed_forward_backward(
        self, index: int, carried: Carried, shared: Shared, gradients: Carried
    ) -> Carried:
        """The gradients of what enters a block's feed-forward, given those of what leaves it."""

    def head(self, carried: Carried, shared: Shared, grid: Grid) -> Tensor:
        """The prediction, float32 [1, frames, channels, height, width]."""

    def compile_pieces(self, backend: str) -> None:
        """Compile everything in a block but its attention with a backend of torch.compile."""


class Weights(Protocol):
    """Brings the weights of blocks or layers to the device, one at a time."""

    copied_bytes: int  # to the device, so far
    host_bytes: int  # of the buffers that weights wait in

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        """The blocks in this order; the weights of each are on the device until the next one is asked for."""

    def stays(self, index: int) -> bool:
        """Whether a block's weights are on the device all the time."""


class TextEncoder(Protocol):
    """Token ids to text embeddings."""

    network: nn.Module
    layers: nn.ModuleList  # nearly all of the weights

    def encode(self, tokens: Tensor, weights: Weights | None = None) -> Tensor:
        """Token ids [prompts, length] to embeddings [prompts, length, channels].

        With `weights`, they bring the layers; what is around these is on the device already.
        """


class WorkCounter(Protocol):
    """Counts what operations on fake tensors do (`ditflow.memory.tracker.Tracker`)."""

    live_bytes: int
    peak_bytes: int
    flops: int


class Autoencoder(Protocol):
    """Video to latents and back. Latents are scaled as the transformer reads them."""

    network: nn.Module

    def encode(self, pixels: Tensor) -> Tensor:
        """The mode of the distribution, float32 [1, latent frames, channels, height, width].

        `pixels`: uint8 [frames, height, width, 3] on the host.
        """

    def decode(self, latents: Tensor, frames: int, tile: str) -> Tensor:
        """The first `frames` frames, uint8 [frames, height, width, 3] on the host; `tile` WxH or "none"."""

    def compile_decoder(self, backend: str) -> None:
        """Compile the decoder with a backend of torch.compile."""

    def each_shape_once(self, counter: WorkCounter) -> AbstractContextManager:
        """For planning: run one tile of each shape and count the others like it. It may do nothing."""


class Schedule(Protocol):
    """A run through the noise levels, from the first timestep to the last.

    Noise comes from a generator on the CPU, so that a seed gives the same noise on every device.
    """

    timesteps: Sequence[int | float]
    on_device: Tensor  # [steps], the same timesteps as `Inputs.timestep` takes them

    def initial_noise(self, shape: tuple[int, ...]) -> Tensor:
        """The latents a run begins with, float32."""

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Clean latents at the noise level of a timestep [1]."""

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
        """The latents after denoising step `index`, float32."""

    def dynamic_scale(self, scale: float, index: int) -> float:
        """The guidance scale of step `index` where it changes over the steps (`--dynamic-scale`)."""

    def state(self) -> SchedulerState:
        """What the next step depends on. The tensors stay the schedule's own: do not change them."""

    def restore(self, state: SchedulerState) -> None:
        """Continue from a state. Raises KeyError for one of another kind of schedule."""


class Runner(Protocol):
    """Computes a transformer's forwards and gradients; implementations differ in what they keep where."""

    transformer: Transformer

    def forward(self, batch: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        """The prediction for each input, float32 [1, frames, channels, height, width], without gradient.

        All inputs go through a block while its weights are there. `injected` applies to each of them.
        """

    def features(self, inputs: Inputs, injected: Injected, capture: Capture) -> dict[int, Any]:
        """What is read in each block, without gradient: QueryKey, KeyValue or output [S, channels]."""

    def gradient(
        self,
        loss: Loss,
        wrt: Variable,
        inputs: Inputs,
        injected: Injected,
        capture: Capture,
        scale: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        """The mean of `loss` over the captured blocks, and `scale` times its gradient in float32."""
