"""The interface between the program and a model: the protocols that every model family implements.

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
    """The size of the video in latent patches. Token index = (frame * height + row) * width + column."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Inputs:
    """The inputs of one forward, batch 1. Latents and embedding stay float32; the model casts them."""

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
"""The activations that blocks change: video tokens [1, S, channels], then any tokens that attend with them.

Gradient checkpointing keeps these. When they enter the first block, only the video tokens depend on the
latents and the embedding.
"""


@dataclass(frozen=True)
class Shared:
    """What all blocks read and none changes."""

    time: Tensor  # the embedded timestep
    rope: Tensor | None = None  # rotary embedding [2 (q, k), 2 (cos, sin), S, head_dim], if not additive
    text: Tensor | None = None  # [1, text tokens, channels], for cross-attention


@dataclass(frozen=True)
class AttentionInputs:
    """The inputs of a block's self-attention."""

    query: Tensor  # [1, tokens, heads, head_dim]
    key: Tensor  # [1, tokens, heads, head_dim]
    value: Tensor  # [1, tokens, heads, head_dim]
    video: slice  # the video tokens among the tokens
    gates: Carried  # factors for the attention's output, used by `add_attention`

    @property
    def query_key(self) -> QueryKey:
        return QueryKey(self.query[0, self.video], self.key[0, self.video])

    @property
    def key_value(self) -> KeyValue:
        return KeyValue(self.key[:, self.video], self.value[:, self.video])

    def with_video(self, given: KeyValue) -> AttentionInputs:
        """The same inputs with the given keys and values for the video tokens."""
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
    """What to read, and in which blocks. The forward stops as early as possible in the deepest of them.

    `query_key` and `key_value` are read before a block's attention, `output` after the block.
    """

    what: Literal["query_key", "key_value", "output"]
    blocks: tuple[int, ...]

    @property
    def deepest(self) -> int:
        return max(self.blocks)


Injected = Mapping[int, KeyValue]  # by block
Loss = Callable[[int, Any], Tensor]  # (block, features captured there) -> scalar float32
Reduce = Callable[[int, Any], Any]  # (block, features captured there) -> what is kept of them
Variable = Literal["latents", "embedding"]
SchedulerState = Mapping[str, Tensor]
"""What a schedule's next step depends on, besides its index: generator state, history, counters.

Only the schedule reads it. Checkpoints store its tensors by name; the names `latents` and `embedding` are
reserved, and those that begin with `reuse.` or `guidance.`.
"""


class Transformer(Protocol):
    """A frozen video transformer: embed -> blocks -> head. Each block is split at its self-attention."""

    network: nn.Module  # the blocks and everything around them
    blocks: nn.ModuleList
    embedding_kind: Literal["rotary", "additive"]
    timestep_dtype: torch.dtype  # of `Inputs.timestep`

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def grid(self, latents: Tensor) -> Grid:
        """The grid of latents [1, frames, channels, height, width]."""

    def embedding(self, grid: Grid) -> Tensor:
        """The native positional embedding on a grid, float32 (see `Inputs.embedding`)."""

    def embed(self, inputs: Inputs) -> tuple[Carried, Shared]:
        """The inputs of the first block."""

    def prepare(self, index: int, carried: Carried, shared: Shared) -> AttentionInputs:
        """The first part of a block: everything before its self-attention."""

    def key_value(self, index: int, carried: Carried, shared: Shared) -> KeyValue:
        """`prepare(...).key_value`, without computing the rest of `prepare`."""

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """Softmax attention: [1, tokens, heads, head_dim]."""

    def attend_forward(self, inputs: AttentionInputs) -> Tensor:
        """The same in forwards that no backward follows, where a kernel needs no gradient."""

    def add_attention(
        self,
        index: int,
        carried: Carried,
        shared: Shared,
        inputs: AttentionInputs,
        attended: Tensor,  # [1, tokens, heads, head_dim]
    ) -> Carried:
        """The middle of a block: everything from its self-attention's output to its feed-forward."""

    def feed_forward(self, index: int, carried: Carried, shared: Shared) -> Carried:
        """The last part of a block: its feed-forward, applied to each token with a residual."""

    def feed_forward_backward(
        self, index: int, carried: Carried, shared: Shared, gradients: Carried
    ) -> Carried:
        """The gradients of `feed_forward`'s input `carried`, given those of its output."""

    def head(self, carried: Carried, shared: Shared, grid: Grid) -> Tensor:
        """The prediction, float32 [1, frames, channels, height, width]."""

    def compile_pieces(self, backend: str) -> None:
        """Compile everything in a block but its attention with a backend of torch.compile."""


class Weights(Protocol):
    """Brings the weights of blocks or layers to the device, one at a time."""

    copied_bytes: int  # to the device, so far
    host_bytes: int  # of the host buffers that hold weights

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        """Yield the blocks in this order. A block's weights are on the device until the next is asked for."""

    def stays(self, index: int) -> bool:
        """Whether a block's weights are on the device all the time."""


class TextEncoder(Protocol):
    """Token ids to text embeddings."""

    network: nn.Module
    layers: nn.ModuleList  # nearly all of the weights

    def encode(self, tokens: Tensor, weights: Weights | None = None) -> Tensor:
        """Token ids [prompts, length] to embeddings [prompts, length, channels].

        `weights` brings the layers to the device; everything else is on it already. Without `weights`, the
        layers are on the device too.
        """


class WorkCounter(Protocol):
    """Counts the memory and work of operations on fake tensors (`ditflow.memory.tracker.Tracker`)."""

    live_bytes: int
    peak_bytes: int
    flops: int
    attention_flops: int
    moved_bytes: int


class Autoencoder(Protocol):
    """Encodes video to latents and decodes latents to video. Latents have the transformer's scale."""

    network: nn.Module  # its parts `encoder` and `decoder` work on one tile at a time

    def encode(self, pixels: Tensor) -> Tensor:
        """The mode of the distribution, float32 [1, latent frames, channels, height, width].

        `pixels`: uint8 [frames, height, width, 3] on the host.
        """

    def decode(self, latents: Tensor, frames: int, tile: str) -> Tensor:
        """The first `frames` frames, uint8 [frames, height, width, 3] on the host; `tile` WxH or "none".

        Raises NotFinite if they contain NaN or infinity (see `to_pixels`).
        """

    def compile_decoder(self, backend: str) -> None:
        """Compile the decoder with a backend of torch.compile."""

    def each_shape_once(self, counter: WorkCounter) -> AbstractContextManager:
        """For planning: run one tile of each shape, and count the other tiles like it. May do nothing."""


class Schedule(Protocol):
    """The timesteps of a run and the denoising step. Its state changes with each step.

    Noise comes from a generator on the CPU, so that a seed gives the same noise on every device.
    """

    timesteps: Sequence[int | float]
    on_device: Tensor  # [steps], the timesteps on the device, in `Transformer.timestep_dtype`

    def initial_noise(self, shape: tuple[int, ...]) -> Tensor:
        """The latents that a run starts from, float32."""

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Bring clean latents to the noise level of a timestep [1]; linear in latents and noise."""

    def estimate_clean(self, prediction: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        """The clean latents that the model's prediction for latents at a timestep [1] means, float32."""

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
        """The latents after denoising step `index`, float32."""

    def dynamic_scale(self, scale: float, index: int) -> float:
        """The guidance scale of step `index` with `--dynamic-scale`."""

    def state(self) -> SchedulerState:
        """What the next step depends on. The schedule still uses the tensors: do not change them."""

    def restore(self, state: SchedulerState) -> None:
        """Continue from a state. Raises KeyError for the state of another kind of schedule."""


class FirstBlock(Protocol):
    """Decides, from what the first block does to the video tokens, whether the other blocks run."""

    def reused(self, entering: Tensor, leaving: Tensor) -> Tensor | None:
        """What the other blocks add to the tokens [1, S, channels] that leave the first; None: run them."""

    def keep(self, residual: Tensor) -> None:
        """Take what the other blocks have added, [1, S, channels]."""


class Runner(Protocol):
    """Computes a transformer's forwards and gradients. Implementations differ in their use of memory."""

    transformer: Transformer

    def forward(self, batch: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        """The prediction for each input, float32 [1, frames, channels, height, width], without gradient.

        All inputs go through a block while its weights are on the device. `injected` applies to each of them.
        """

    def forward_or_reuse(self, batch: Sequence[Inputs], first_block: FirstBlock) -> list[Tensor]:
        """As `forward`, if `first_block` so decides for the first input; else only that input's prediction.

        The other inputs follow this decision. The weights of blocks that do not run are not brought to the
        device.
        """

    def features(
        self, inputs: Inputs, injected: Injected, capture: Capture, reduce: Reduce | None = None
    ) -> dict[int, Any]:
        """The captured features by block, without gradient: QueryKey, KeyValue or output [S, channels].

        With `reduce`, only its result is kept of a block, made before the forward goes on.
        """

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
