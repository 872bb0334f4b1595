"""CogVideoX's transformer, split at the self-attention of each block.

The layers are those of diffusers' CogVideoXTransformer3DModel. The forward is written here, so that it can
stop inside a block and replace a block's keys and values. `Carried` is (video tokens, text tokens), which
attend together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from einops import rearrange
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ditflow.errors import DitflowError
from ditflow.models.attention import load_attention
from ditflow.models.cogvideox.embedding import positional_embedding
from ditflow.models.compiling import compile_piece
from ditflow.models.compute import input_gradient
from ditflow.models.protocols import AttentionInputs, Carried, Grid, Inputs, KeyValue, Shared
from ditflow.models.storage import unpacked
from ditflow_kernels import qk_norm_rope

CHUNK = 4096  # tokens at a time in a feed-forward's backward


class CogVideoXTransformer:
    """Implements `Transformer`.

    `attention` names a kernel of `ditflow.models.attention`, `attention_forward` that of forwards without
    gradient (None: the same). With `compiled`, the pieces of a block around
    its attention are compiled at first use.

    Raises DitflowError for CogVideoX 1.5 and image-to-video weights, whose patch embedding differs, and if
    the attention kernel's package cannot be loaded.
    """

    timestep_dtype = torch.int64

    def __init__(
        self,
        network: CogVideoXTransformer3DModel,
        attention: str = "sdpa",
        compiled: bool = False,
        attention_forward: str | None = None,
    ):
        config = network.config
        if config.patch_size_t is not None or config.use_learned_positional_embeddings:
            raise DitflowError(
                "CogVideoX 1.5 or image-to-video weights given; text-to-video 2B and 5B are accepted"
            )
        self.network = network.requires_grad_(False).eval()
        self.blocks = network.transformer_blocks
        self.config = config
        self.rotary = config.use_rotary_positional_embeddings
        self.embedding_kind = "rotary" if self.rotary else "additive"
        self.attention = load_attention(attention)
        self.attention_forward = load_attention(attention_forward or attention)
        self.pieces = Pieces()
        if compiled:
            self.pieces = Pieces(*map(compile_piece, Pieces()))

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.network.device

    def compile_pieces(self, backend: str) -> None:
        self.pieces = Pieces(*(compile_piece(piece, backend) for piece in Pieces()))

    def grid(self, latents: Tensor) -> Grid:
        _, frames, _, height, width = latents.shape
        return Grid(frames, height // self.config.patch_size, width // self.config.patch_size)

    def embedding(self, grid: Grid) -> Tensor:
        return positional_embedding(self.config, grid).to(self.device)

    def embed(self, inputs: Inputs) -> tuple[Carried, Shared]:
        layers, dtype = self.network.patch_embed, self.dtype
        video = rearrange(layers.proj(inputs.latents[0].to(dtype)), "f c h w -> 1 (f h w) c")
        if not self.rotary:
            video = video + inputs.embedding.to(dtype)
        text = layers.text_proj(inputs.prompt.to(dtype))
        time = self.network.time_embedding(self.network.time_proj(inputs.timestep).to(dtype))
        return (video, text), Shared(time, inputs.embedding if self.rotary else None)

    def prepare(self, index: int, carried: Carried, shared: Shared) -> AttentionInputs:
        query, key, value, gates = self.pieces.prepare(self.blocks[index], carried, shared)
        return AttentionInputs(query, key, value, slice(carried[1].shape[1], None), gates)

    def key_value(self, index: int, carried: Carried, shared: Shared) -> KeyValue:
        block, attention = self.blocks[index], self.blocks[index].attn1
        video = block.norm1(carried[0], carried[1][:, :0], shared.time)[0]
        key, value = (
            rearrange(project(video), "b s (m d) -> b s m d", m=attention.heads)
            for project in (attention.to_k, attention.to_v)
        )
        norm = _norm(attention.norm_k)
        rope = None if shared.rope is None else shared.rope[1:].expand_as(shared.rope)
        return KeyValue(qk_norm_rope(key, key, norm, norm, rope, 0)[1], value)

    def attend(self, inputs: AttentionInputs) -> Tensor:
        return self.attention(inputs.query, inputs.key, inputs.value)

    def attend_forward(self, inputs: AttentionInputs) -> Tensor:
        return self.attention_forward(inputs.query, inputs.key, inputs.value)

    def add_attention(
        self, index: int, carried: Carried, shared: Shared, inputs: AttentionInputs, attended: Tensor
    ) -> Carried:
        return self.pieces.add_attention(self.blocks[index], carried, inputs.gates, attended)

    def feed_forward(self, index: int, carried: Carried, shared: Shared) -> Carried:
        return self.pieces.feed_forward(self.blocks[index], carried, shared)

    @torch.no_grad()
    def feed_forward_backward(
        self, index: int, carried: Carried, shared: Shared, gradients: Carried
    ) -> Carried:
        """Skips the last product, whose value no gradient needs, and takes `CHUNK` tokens at a time.

        Chunks save memory: the hidden layer is four times as wide as everything else.
        """
        with unpacked(self.blocks[index].ff):
            return tuple(
                self._tokens_backward(index, carried[which], shared.time, which, gradient)
                for which, gradient in enumerate(gradients)
            )

    def _tokens_backward(
        self, index: int, tokens: Tensor, time: Tensor, which: int, gradient: Tensor
    ) -> Tensor:
        """`feed_forward_backward` for only the video tokens (0) or only the text tokens (1)."""
        block, result = self.blocks[index], torch.empty_like(gradient)
        for first in range(0, tokens.shape[1], CHUNK):
            chunk = slice(first, first + CHUNK)
            with torch.enable_grad():
                entering = tokens[:, chunk].detach().requires_grad_()
                hidden, gate = self.pieces.hidden_layer(block, entering, time, which)
            # only its place in the graph is needed, not its values
            leaving = get_gradient_edge(hidden)
            del hidden
            upstream = input_gradient(block.ff.net[2], gate * gradient[:, chunk])
            (found,) = torch.autograd.grad(leaving, entering, upstream)
            torch.add(gradient[:, chunk], found, out=result[:, chunk])
        return result

    def head(self, carried: Carried, shared: Shared, grid: Grid) -> Tensor:
        network, patch = self.network, self.config.patch_size
        video = network.norm_out(network.norm_final(carried[0]), temb=shared.time)
        return rearrange(
            network.proj_out(video),
            "1 (f h w) (c p q) -> 1 f c (h p) (w q)",
            f=grid.frames,
            h=grid.height,
            w=grid.width,
            p=patch,
            q=patch,
        ).float()


def prepare(
    block: CogVideoXBlock, carried: Carried, shared: Shared
) -> tuple[Tensor, Tensor, Tensor, Carried]:
    """Query, key, value [1, T + S, heads, head_dim] with text tokens first, and gates of video and text."""
    attention = block.attn1
    video, text, video_gate, text_gate = block.norm1(*carried, shared.time)
    tokens = torch.cat([text, video], dim=1)
    query, key, value = (
        rearrange(project(tokens), "b s (m d) -> b s m d", m=attention.heads)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    norms = _norm(attention.norm_q), _norm(attention.norm_k)
    query, key = qk_norm_rope(query, key, *norms, shared.rope, text.shape[1])
    return query, key, value, (video_gate, text_gate)


def add_attention(block: CogVideoXBlock, carried: Carried, gates: Carried, attended: Tensor) -> Carried:
    """Project attention's output [1, T + S, heads, head_dim] and add it to the tokens."""
    attended = block.attn1.to_out[0](rearrange(attended, "b s m d -> b s (m d)"))
    return _add(carried, gates, attended)


def feed_forward(block: CogVideoXBlock, carried: Carried, shared: Shared) -> Carried:
    """See `Transformer.feed_forward`."""
    video, text, *gates = block.norm2(*carried, shared.time)
    return _add(carried, gates, block.ff(torch.cat([text, video], dim=1)))


def hidden_layer(
    block: CogVideoXBlock,
    tokens: Tensor,  # [1, n, channels]
    time: Tensor,
    which: int,
) -> tuple[Tensor, Tensor]:
    """A feed-forward's hidden layer [1, n, 4 channels] and gate, for video (0) or text tokens (1)."""
    nothing = tokens.detach()[:, :0]
    normed = block.norm2(*((tokens, nothing) if which == 0 else (nothing, tokens)), time)
    return block.ff.net[0](normed[which]), normed[2 + which]


class Pieces(NamedTuple):
    """The pieces of a block around its attention, as functions of a block and tensors."""

    prepare: Callable[..., tuple[Tensor, Tensor, Tensor, Carried]] = prepare
    add_attention: Callable[..., Carried] = add_attention
    feed_forward: Callable[..., Carried] = feed_forward
    hidden_layer: Callable[..., tuple[Tensor, Tensor]] = hidden_layer


def _add(carried: Carried, gates: Carried, update: Tensor) -> Carried:
    """Video and text tokens plus a gated update [1, T + S, channels]."""
    video, text = carried
    length = text.shape[1]
    return video + gates[0] * update[:, length:], text + gates[1] * update[:, :length]


def _norm(layer: torch.nn.LayerNorm | None) -> tuple[Tensor, Tensor, float] | None:
    return None if layer is None else (layer.weight, layer.bias, layer.eps)
