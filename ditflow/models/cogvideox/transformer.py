"""CogVideoX, cut where motion guidance needs it: embed, one block in two halves, head.

The layers are those of diffusers' CogVideoXTransformer3DModel; the way through them is our own, so that a
forward can end inside a block and a block's keys and values can be replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from einops import rearrange
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.models.attention import load_attention
from ditflow.models.cogvideox.embedding import positional_embedding
from ditflow.models.compiling import compile_piece
from ditflow.models.protocols import Grid, Inputs, KeyValue
from ditflow_kernels import qk_norm_rope

CHUNK = 4096  # tokens of a feed-forward's reverse


@dataclass(frozen=True)
class Stream:
    """The activations between two blocks."""

    video: Tensor  # [1, S, channels]
    text: Tensor  # [1, T, channels]
    time: Tensor  # [1, time channels]
    rope: Tensor | None  # [2 (q, k), 2 (cos, sin), S, head_dim]


@dataclass(frozen=True)
class AttentionInputs:
    """A block's attention just before it happens: text tokens first, then video tokens."""

    query: Tensor  # [1, T + S, heads, head_dim]
    key: Tensor  # [1, T + S, heads, head_dim]
    value: Tensor  # [1, T + S, heads, head_dim]
    video_gate: Tensor  # [1, 1, channels]
    text_gate: Tensor  # [1, 1, channels]


class CogVideoX:
    """A frozen CogVideoX transformer as embed -> blocks -> head.

    `attention` names a kernel of `ditflow.models.attention`. With `compiled`, what stands before and after
    a block's attention is compiled where it is first used; attention itself never is.

    Raises DitflowError for CogVideoX 1.5 and image-to-video weights, which have another patch embedding, and
    where the attention kernel's package cannot be loaded.
    """

    def __init__(
        self, transformer: CogVideoXTransformer3DModel, attention: str = "sdpa", compiled: bool = False
    ):
        config = transformer.config
        if config.patch_size_t is not None or config.use_learned_positional_embeddings:
            raise DitflowError(
                "CogVideoX 1.5 or image-to-video weights given; text-to-video 2B and 5B are accepted"
            )
        self.transformer = transformer.requires_grad_(False).eval()
        self.blocks = transformer.transformer_blocks
        self.rotary = config.use_rotary_positional_embeddings
        self.config = config
        self.attend = load_attention(attention)
        self.pieces = Pieces(*map(compile_piece, Pieces())) if compiled else Pieces()

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def grid(self, latents: Tensor) -> Grid:
        _, frames, _, height, width = latents.shape
        return Grid(frames, height // self.config.patch_size, width // self.config.patch_size)

    def embedding(self, grid: Grid) -> Tensor:
        """The model's own positional embedding on a grid, float32 (see `Inputs.embedding`)."""
        return positional_embedding(self.config, grid).to(self.device)

    def embed(self, inputs: Inputs) -> Stream:
        layers, dtype = self.transformer.patch_embed, self.dtype
        video = rearrange(layers.proj(inputs.latents[0].to(dtype)), "f c h w -> 1 (f h w) c")
        if not self.rotary:
            video = video + inputs.embedding.to(dtype)
        time = self.transformer.time_proj(inputs.timestep).to(dtype)
        return Stream(
            video=video,
            text=layers.text_proj(inputs.prompt.to(dtype)),
            time=self.transformer.time_embedding(time),
            rope=inputs.embedding if self.rotary else None,
        )

    def prepare(self, index: int, stream: Stream) -> AttentionInputs:
        """The first half of a block: everything before its attention."""
        return self.pieces.prepare(self.blocks[index], stream)

    def key_value(self, index: int, stream: Stream) -> KeyValue:
        """A block's keys and values of the video tokens alone, where nothing else of it is wanted."""
        block, attention = self.blocks[index], self.blocks[index].attn1
        video = block.norm1(stream.video, stream.text[:, :0], stream.time)[0]
        key, value = (
            rearrange(project(video), "b s (m d) -> b s m d", m=attention.heads)
            for project in (attention.to_k, attention.to_v)
        )
        norm = _norm(attention.norm_k)
        rope = None if stream.rope is None else stream.rope[1:].expand_as(stream.rope)
        return KeyValue(qk_norm_rope(key, key, norm, norm, rope, 0)[1], value)

    def finish(self, index: int, stream: Stream, inputs: AttentionInputs) -> Stream:
        """The rest of a block: attention and feed-forward."""
        stream = self.add_attention(index, stream, inputs, self.attention(inputs))
        del inputs  # queries, keys and values: as large as all else together
        return self.feed_forward(index, stream)

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """Softmax attention of text and video together: [1, T + S, heads, head_dim]."""
        return self.attend(inputs.query, inputs.key, inputs.value)

    def add_attention(
        self,
        index: int,
        stream: Stream,
        inputs: AttentionInputs,
        attended: Tensor,  # [1, T + S, heads, head_dim]
    ) -> Stream:
        """A block's attention, projected and added to the stream."""
        return self.pieces.add_attention(self.blocks[index], stream, inputs, attended)

    def feed_forward(self, index: int, stream: Stream) -> Stream:
        """A block's feed-forward, added to the stream: the last thing it does, token by token."""
        return self.pieces.feed_forward(self.blocks[index], stream)

    @torch.no_grad()
    def feed_forward_reverse(
        self, index: int, stream: Stream, gradient: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The gradients (video, text) of what enters a block's feed-forward, given those of what leaves it.

        Its last product is left out, because no gradient needs its value, and `CHUNK` tokens are taken at a
        time: the hidden layer is four times as wide as all else.
        """
        video, text = (self._tokens_reverse(index, stream, *both) for both in enumerate(gradient))
        return video, text

    def _tokens_reverse(self, index: int, stream: Stream, which: int, gradient: Tensor) -> Tensor:
        """The same for the video (0) or the text tokens (1) alone."""
        block, tokens = self.blocks[index], (stream.video, stream.text)[which]
        result = torch.empty_like(gradient)
        for first in range(0, tokens.shape[1], CHUNK):
            chunk = slice(first, first + CHUNK)
            with torch.enable_grad():
                entering = tokens[:, chunk].detach().requires_grad_()
                hidden, gate = self.pieces.hidden_layer(block, entering, stream.time, which)
            upstream = (gate * gradient[:, chunk]) @ block.ff.net[2].weight
            (found,) = torch.autograd.grad(hidden, entering, upstream)
            torch.add(gradient[:, chunk], found, out=result[:, chunk])
        return result

    def head(self, stream: Stream, grid: Grid) -> Tensor:
        """The prediction, float32 [1, frames, channels, height, width]."""
        model, patch = self.transformer, self.config.patch_size
        video = model.norm_out(model.norm_final(stream.video), temb=stream.time)
        return rearrange(
            model.proj_out(video),
            "1 (f h w) (c p q) -> 1 f c (h p) (w q)",
            f=grid.frames,
            h=grid.height,
            w=grid.width,
            p=patch,
            q=patch,
        ).float()


def prepare(block: CogVideoXBlock, stream: Stream) -> AttentionInputs:
    """See `CogVideoX.prepare`."""
    attention = block.attn1
    video, text, video_gate, text_gate = block.norm1(stream.video, stream.text, stream.time)
    tokens = torch.cat([text, video], dim=1)
    query, key, value = (
        rearrange(project(tokens), "b s (m d) -> b s m d", m=attention.heads)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    query, key = qk_norm_rope(
        query, key, _norm(attention.norm_q), _norm(attention.norm_k), stream.rope, stream.text.shape[1]
    )
    return AttentionInputs(query, key, value, video_gate, text_gate)


def add_attention(block: CogVideoXBlock, stream: Stream, inputs: AttentionInputs, attended: Tensor) -> Stream:
    """See `CogVideoX.add_attention`."""
    text_length = stream.text.shape[1]
    attended = block.attn1.to_out[0](rearrange(attended, "b s m d -> b s (m d)"))
    video = stream.video + inputs.video_gate * attended[:, text_length:]
    text = stream.text + inputs.text_gate * attended[:, :text_length]
    return replace(stream, video=video, text=text)


def feed_forward(block: CogVideoXBlock, stream: Stream) -> Stream:
    """See `CogVideoX.feed_forward`."""
    text_length = stream.text.shape[1]
    video, text, video_gate, text_gate = block.norm2(stream.video, stream.text, stream.time)
    fed = block.ff(torch.cat([text, video], dim=1))
    video = stream.video + video_gate * fed[:, text_length:]
    text = stream.text + text_gate * fed[:, :text_length]
    return replace(stream, video=video, text=text)


def hidden_layer(
    block: CogVideoXBlock,
    tokens: Tensor,  # [1, some, channels]
    time: Tensor,
    which: int,
) -> tuple[Tensor, Tensor]:
    """A feed-forward's hidden layer [1, some, 4 channels] and gate, for video (0) or text tokens (1)."""
    nothing = tokens.detach()[:, :0]
    normed = block.norm2(*((tokens, nothing) if which == 0 else (nothing, tokens)), time)
    return block.ff.net[0](normed[which]), normed[2 + which]


class Pieces(NamedTuple):
    """A block cut where attention happens: functions of a block and tensors, one for all blocks."""

    prepare: Callable[..., AttentionInputs] = prepare
    add_attention: Callable[..., Stream] = add_attention
    feed_forward: Callable[..., Stream] = feed_forward
    hidden_layer: Callable[..., tuple[Tensor, Tensor]] = hidden_layer


def inject(inputs: AttentionInputs, given: KeyValue, text_length: int) -> AttentionInputs:
    """The attention of a block whose video tokens get other keys and values; its text keeps its own."""
    key = torch.cat([inputs.key[:, :text_length], given.key], dim=1)
    value = torch.cat([inputs.value[:, :text_length], given.value], dim=1)
    return replace(inputs, key=key, value=value)


def _norm(layer: torch.nn.LayerNorm | None) -> tuple[Tensor, Tensor, float] | None:
    return None if layer is None else (layer.weight, layer.bias, layer.eps)
