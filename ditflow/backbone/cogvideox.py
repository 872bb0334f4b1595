"""CogVideoX, cut where motion guidance needs it: embed, one block in two halves, head.

The layers are those of diffusers' CogVideoXTransformer3DModel; the way through them is our own, so that a
forward can end inside a block and a block's keys and values can be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel
from einops import rearrange
from torch import Tensor

from ditflow.backbone.embedding import positional_embedding
from ditflow.backbone.runner import Grid, Inputs, KeyValue
from ditflow.errors import DitflowError
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

    Raises DitflowError for CogVideoX 1.5 and image-to-video weights, which have another patch embedding.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel):
        config = transformer.config
        if config.patch_size_t is not None or config.use_learned_positional_embeddings:
            raise DitflowError(
                "CogVideoX 1.5 or image-to-video weights given; text-to-video 2B and 5B are accepted"
            )
        self.transformer = transformer.requires_grad_(False).eval()
        self.blocks = transformer.transformer_blocks
        self.rotary = config.use_rotary_positional_embeddings
        self.config = config

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
        block, attention = self.blocks[index], self.blocks[index].attn1
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
        return self.feed_forward(index, self.add_attention(index, stream, inputs, self.attention(inputs)))

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """Softmax attention of text and video together: [1, T + S, heads, head_dim]."""
        tokens = (tensor.transpose(1, 2) for tensor in (inputs.query, inputs.key, inputs.value))
        return F.scaled_dot_product_attention(*tokens).transpose(1, 2)

    def add_attention(
        self,
        index: int,
        stream: Stream,
        inputs: AttentionInputs,
        attended: Tensor,  # [1, T + S, heads, head_dim]
    ) -> Stream:
        """A block's attention, projected and added to the stream."""
        block, text_length = self.blocks[index], stream.text.shape[1]
        attended = block.attn1.to_out[0](rearrange(attended, "b s m d -> b s (m d)"))
        video = stream.video + inputs.video_gate * attended[:, text_length:]
        text = stream.text + inputs.text_gate * attended[:, :text_length]
        return replace(stream, video=video, text=text)

    def feed_forward(self, index: int, stream: Stream) -> Stream:
        """A block's feed-forward, added to the stream: the last thing it does, token by token."""
        block, text_length = self.blocks[index], stream.text.shape[1]
        video, text, video_gate, text_gate = block.norm2(stream.video, stream.text, stream.time)
        fed = block.ff(torch.cat([text, video], dim=1))
        video = stream.video + video_gate * fed[:, text_length:]
        text = stream.text + text_gate * fed[:, :text_length]
        return replace(stream, video=video, text=text)

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
        block = self.blocks[index]
        tokens, nothing = (stream.video, stream.text)[which], stream.video.detach()[:, :0]
        result = torch.empty_like(gradient)
        for first in range(0, tokens.shape[1], CHUNK):
            chunk = slice(first, first + CHUNK)
            with torch.enable_grad():
                entering = tokens[:, chunk].detach().requires_grad_()
                both = (entering, nothing) if which == 0 else (nothing, entering)
                normed = block.norm2(*both, stream.time)
                hidden = block.ff.net[0](normed[which])
            upstream = (normed[2 + which] * gradient[:, chunk]) @ block.ff.net[2].weight
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


def inject(inputs: AttentionInputs, given: KeyValue, text_length: int) -> AttentionInputs:
    """The attention of a block whose video tokens get other keys and values; its text keeps its own."""
    key = torch.cat([inputs.key[:, :text_length], given.key], dim=1)
    value = torch.cat([inputs.value[:, :text_length], given.value], dim=1)
    return replace(inputs, key=key, value=value)


def _norm(layer: torch.nn.LayerNorm | None) -> tuple[Tensor, Tensor, float] | None:
    return None if layer is None else (layer.weight, layer.bias, layer.eps)
