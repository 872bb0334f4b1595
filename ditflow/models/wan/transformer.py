"""Wan's transformer, split at the self-attention of each block.

The layers are those of diffusers' WanTransformer3DModel. The forward is written here, so that it can stop
inside a block and replace a block's keys and values. `Carried` is the video tokens alone: text enters by
cross-attention. Norms, modulation and gates are computed in float32, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from einops import rearrange
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ditflow.errors import DitflowError
from ditflow.models.attention import load_attention, sdpa
from ditflow.models.compiling import compile_piece
from ditflow.models.compute import input_gradient
from ditflow.models.protocols import AttentionInputs, Carried, Grid, Inputs, KeyValue, Shared
from ditflow.models.storage import unpacked
from ditflow.models.wan.rotation import rotary_embedding
from ditflow_kernels import qk_norm_rope

CHUNK = 4096  # tokens at a time in a feed-forward's backward
MODULATIONS = 6  # rows of `Shared.time` for blocks: shift, scale and gate of attention and of feed-forward


class WanTransformer:
    """Implements `Transformer`.

    `Shared.time` is [1, 7, channels]: six modulations that all blocks share, then the embedded timestep. It
    is the same for all tokens, also in models that take a timestep for each token (Wan 2.2 TI2V-5B): these
    use different ones only for images.

    `attention` names a kernel of `ditflow.models.attention` for self-attention, `attention_forward` that of
    forwards without gradient (None: the same). With `compiled`, the pieces of a block around its
    self-attention are compiled at first use.

    Raises DitflowError for image-to-video weights, and if the attention kernel's package cannot be loaded.
    """

    embedding_kind = "rotary"
    timestep_dtype = torch.float32

    def __init__(
        self,
        network: WanTransformer3DModel,
        attention: str = "sdpa",
        compiled: bool = False,
        attention_forward: str | None = None,
    ):
        config = network.config
        if config.image_dim is not None or config.added_kv_proj_dim is not None:
            raise DitflowError("Wan image-to-video weights given; text-to-video weights are accepted")
        self.network = network.requires_grad_(False).eval()
        self.blocks = network.blocks
        self.patch = config.patch_size[1:]  # (height, width) in latent pixels
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
        return self.network.patch_embedding.weight.device

    def compile_pieces(self, backend: str) -> None:
        self.pieces = Pieces(*(compile_piece(piece, backend) for piece in Pieces()))

    def grid(self, latents: Tensor) -> Grid:
        _, frames, _, height, width = latents.shape
        return Grid(frames, height // self.patch[0], width // self.patch[1])

    def embedding(self, grid: Grid) -> Tensor:
        return rotary_embedding(self.network.rope, grid).to(self.device)

    def embed(self, inputs: Inputs) -> tuple[Carried, Shared]:
        network = self.network
        latents = rearrange(inputs.latents.to(self.dtype), "1 f c h w -> 1 c f h w")
        video = rearrange(network.patch_embedding(latents), "1 c f h w -> 1 (f h w) c").contiguous()
        time, modulations, text, _ = network.condition_embedder(inputs.timestep, inputs.prompt.to(self.dtype))
        modulations = rearrange(modulations, "1 (six c) -> 1 six c", six=MODULATIONS)
        return (video,), Shared(torch.cat([modulations, time[:, None]], dim=1), inputs.embedding, text)

    def prepare(self, index: int, carried: Carried, shared: Shared) -> AttentionInputs:
        query, key, value, gate = self.pieces.prepare(self.blocks[index], carried[0], shared)
        return AttentionInputs(query, key, value, slice(0, None), (gate,))

    def key_value(self, index: int, carried: Carried, shared: Shared) -> KeyValue:
        block, attention = self.blocks[index], self.blocks[index].attn1
        tokens, _ = attention_input(block, carried[0], shared.time)
        key, value = (
            by_head(project(tokens), attention.heads) for project in (attention.to_k, attention.to_v)
        )
        norm = over_heads(attention.norm_k)
        rope = shared.rope[1:].expand_as(shared.rope)
        return KeyValue(qk_norm_rope(key, key, norm, norm, rope, 0)[1], value)

    def attend(self, inputs: AttentionInputs) -> Tensor:
        return self.attention(inputs.query, inputs.key, inputs.value)

    def attend_forward(self, inputs: AttentionInputs) -> Tensor:
        return self.attention_forward(inputs.query, inputs.key, inputs.value)

    def add_attention(
        self, index: int, carried: Carried, shared: Shared, inputs: AttentionInputs, attended: Tensor
    ) -> Carried:
        block, (gate,) = self.blocks[index], inputs.gates
        return (self.pieces.add_attention(block, carried[0], shared.text, gate, attended),)

    def feed_forward(self, index: int, carried: Carried, shared: Shared) -> Carried:
        return (self.pieces.feed_forward(self.blocks[index], carried[0], shared.time),)

    @torch.no_grad()
    def feed_forward_backward(
        self, index: int, carried: Carried, shared: Shared, gradients: Carried
    ) -> Carried:
        """Skips the last product, whose value no gradient needs, and takes `CHUNK` tokens at a time.

        Chunks save memory: the hidden layer is several times as wide as everything else.
        """
        block, (tokens,), (gradient,) = self.blocks[index], carried, gradients
        result = torch.empty_like(gradient)
        with unpacked(block.ffn):
            for first in range(0, tokens.shape[1], CHUNK):
                chunk = slice(first, first + CHUNK)
                with torch.enable_grad():
                    entering = tokens[:, chunk].detach().requires_grad_()
                    hidden, gate = self.pieces.hidden_layer(block, entering, shared.time)
                # only its place in the graph is needed, not its values
                leaving = get_gradient_edge(hidden)
                del hidden
                upstream = (gate * gradient[:, chunk].float()).to(gradient.dtype)
                upstream = input_gradient(block.ffn.net[2], upstream)
                (found,) = torch.autograd.grad(leaving, entering, upstream)
                torch.add(gradient[:, chunk], found, out=result[:, chunk])
        return (result,)

    def head(self, carried: Carried, shared: Shared, grid: Grid) -> Tensor:
        network, (video,) = self.network, carried
        shift, scale = (network.scale_shift_table + shared.time[:, MODULATIONS:]).chunk(2, dim=1)
        tokens = (network.norm_out(video.float()) * (1 + scale) + shift).to(video.dtype)
        return rearrange(
            network.proj_out(tokens),
            "1 (f h w) (p q c) -> 1 f c (h p) (w q)",
            f=grid.frames,
            h=grid.height,
            w=grid.width,
            p=self.patch[0],
            q=self.patch[1],
        ).float()


def prepare(
    block: WanTransformerBlock, video: Tensor, shared: Shared
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key and value [1, S, heads, head_dim], and the gate of the attention's output."""
    attention = block.attn1
    tokens, gate = attention_input(block, video, shared.time)
    query, key, value = (
        by_head(project(tokens), attention.heads)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    norms = over_heads(attention.norm_q), over_heads(attention.norm_k)
    return *qk_norm_rope(query, key, *norms, shared.rope, 0), value, gate


def add_attention(
    block: WanTransformerBlock,
    video: Tensor,  # [1, S, channels]
    text: Tensor,  # [1, text tokens, channels]
    gate: Tensor,
    attended: Tensor,  # [1, S, heads, head_dim]
) -> Tensor:
    """Project self-attention's output and add it, then add cross-attention to the prompt."""
    attended = block.attn1.to_out[0](rearrange(attended, "b s m d -> b s (m d)"))
    video = (video.float() + attended * gate).to(video.dtype)
    return video + cross_attention(block.attn2, block.norm2(video.float()).to(video.dtype), text)


def cross_attention(attention: WanAttention, tokens: Tensor, text: Tensor) -> Tensor:
    """The prompt's part of each token, [1, S, channels]."""
    query, key = attention.norm_q(attention.to_q(tokens)), attention.norm_k(attention.to_k(text))
    parts = (by_head(part, attention.heads) for part in (query, key, attention.to_v(text)))
    return attention.to_out[0](rearrange(sdpa(*parts), "b s m d -> b s (m d)"))


def feed_forward(block: WanTransformerBlock, video: Tensor, time: Tensor) -> Tensor:
    tokens, gate = feed_forward_input(block, video, time)
    return (video.float() + block.ffn(tokens).float() * gate).to(video.dtype)


def hidden_layer(block: WanTransformerBlock, video: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """A feed-forward's hidden layer [1, n, hidden channels] of some tokens, and its gate."""
    tokens, gate = feed_forward_input(block, video, time)
    return block.ffn.net[0](tokens), gate


class Pieces(NamedTuple):
    """The pieces of a block around its self-attention, as functions of a block and tensors."""

    prepare: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = prepare
    add_attention: Callable[..., Tensor] = add_attention
    feed_forward: Callable[..., Tensor] = feed_forward
    hidden_layer: Callable[..., tuple[Tensor, Tensor]] = hidden_layer


def attention_input(block: WanTransformerBlock, video: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """What enters a block's self-attention, and the gate [1, 1, channels] of what leaves it."""
    shift, scale, gate, *_ = modulations(block, time)
    return (block.norm1(video.float()) * (1 + scale) + shift).to(video.dtype), gate


def feed_forward_input(block: WanTransformerBlock, video: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """What enters a block's feed-forward, and the gate [1, 1, channels] of what leaves it."""
    *_, shift, scale, gate = modulations(block, time)
    return (block.norm3(video.float()) * (1 + scale) + shift).to(video.dtype), gate


def modulations(block: WanTransformerBlock, time: Tensor) -> tuple[Tensor, ...]:
    """Six tensors [1, 1, channels], float32."""
    return (block.scale_shift_table + time[:, :MODULATIONS].float()).chunk(MODULATIONS, dim=1)


def over_heads(norm: torch.nn.RMSNorm) -> tuple[Tensor, None, float]:
    """The norm of queries or keys, of all heads together, as `qk_norm_rope` takes it."""
    return norm.weight, None, norm.eps


def by_head(tokens: Tensor, heads: int) -> Tensor:
    """[1, tokens, heads * head_dim] to [1, tokens, heads, head_dim]."""
    return rearrange(tokens, "b s (m d) -> b s m d", m=heads)
