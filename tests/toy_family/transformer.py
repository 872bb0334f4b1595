"""The toy's network, and its split into the pieces of `Transformer`. It carries video tokens only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange, repeat
from torch import Tensor, nn

from ditflow.models.attention import load_attention
from ditflow.models.compiling import compile_piece
from ditflow.models.protocols import AttentionInputs, Carried, Grid, Inputs, KeyValue, Shared

PATCH = (1, 2)  # (height, width) in latent pixels: not square
PERIOD = 100.0  # of the slowest rotation, in patches


class ToyTransformer3DModel(ModelMixin, ConfigMixin):
    """A video transformer: self-attention over video tokens, cross-attention to the prompt, feed-forward."""

    @register_to_config
    def __init__(
        self,
        num_layers: int = 5,
        num_attention_heads: int = 2,
        attention_head_dim: int = 12,  # a multiple of 6: pairs of channels for each of three axes
        in_channels: int = 6,
        time_channels: int = 16,
        text_channels: int = 10,
        text_length: int = 20,
    ):
        super().__init__()
        channels, patch = num_attention_heads * attention_head_dim, in_channels * math.prod(PATCH)
        self.patches = nn.Linear(patch, channels)
        self.text = nn.Linear(text_channels, channels)
        self.time = nn.Linear(time_channels, time_channels)
        self.blocks = nn.ModuleList(
            ToyBlock(channels, num_attention_heads, time_channels) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.modulation = nn.Linear(time_channels, 2 * channels)
        self.out = nn.Linear(channels, patch)

    def forward(
        self,
        latents: Tensor,  # [1, frames, channels, height, width]
        prompt: Tensor,  # [1, text tokens, text channels]
        timestep: Tensor,  # [1]
    ) -> Tensor:
        """The plain forward, which this project does not call: what `ToyTransformer` must equal."""
        grid = grid_of(latents)
        video, text, time = self.patches(to_patches(latents)), self.text(prompt), self.embedded(timestep)
        angles = rotation_angles(grid, self.config.attention_head_dim)
        for block in self.blocks:
            video = block(video, text, time, torch.polar(torch.ones_like(angles), angles))
        return to_latents(self.leaving(video, time), grid)

    def embedded(self, timestep: Tensor) -> Tensor:
        """A timestep from 0 (clean) to 1000 as [1, time channels]."""
        half = self.config.time_channels // 2
        frequencies = torch.exp(-math.log(1000) * torch.arange(half, device=timestep.device) / half)
        angles = timestep.float()[:, None] * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return F.silu(self.time(waves.to(self.dtype)))

    def leaving(self, video: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.modulation(time)[:, None].chunk(2, dim=-1)
        return self.out(self.norm(video) * (1 + scale) + shift)


class ToyBlock(nn.Module):
    """One block's layers."""

    def __init__(self, channels: int, heads: int, time_channels: int):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(time_channels, 6 * channels)
        self.norm1, self.norm2 = (nn.LayerNorm(channels, elementwise_affine=False) for _ in range(2))
        self.attn1, self.attn2 = ToyAttention(channels), ToyAttention(channels)
        self.cross_norm = nn.LayerNorm(channels)
        self.ff = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, video: Tensor, text: Tensor, time: Tensor, rotation: Tensor) -> Tensor:
        """The plain forward; `rotation` [S, head_dim / 2] complex."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, dim=-1)
        tokens = self.norm1(video) * (1 + scale1) + shift1
        query, key, value = self.attn1.projected(tokens, tokens, self.heads)

        def rotated(tensor: Tensor) -> Tensor:
            pairs = torch.view_as_complex(
                rearrange(tensor, "b s m (d two) -> b s m d two", two=2).contiguous()
            )
            return torch.view_as_real(pairs * rotation[:, None]).flatten(-2)

        video = video + gate1 * self.attn1.attended(rotated(query), rotated(key), value)
        video = video + self.attn2.attended(*self.attn2.projected(self.cross_norm(video), text, self.heads))
        return video + gate2 * self.ff(self.norm2(video) * (1 + scale2) + shift2)


class ToyAttention(nn.Module):
    """Softmax attention with queries and keys normed over all heads together."""

    def __init__(self, channels: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(channels, eps=1e-6), nn.RMSNorm(channels, eps=1e-6)

    def projected(self, tokens: Tensor, context: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [1, tokens, heads, head_dim]."""
        found = self.norm_q(self.to_q(tokens)), self.norm_k(self.to_k(context)), self.to_v(context)
        return tuple(rearrange(tensor, "b s (m d) -> b s m d", m=heads) for tensor in found)

    def attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        by_head = (rearrange(tensor, "b s m d -> b m s d") for tensor in (query, key, value))
        attended = F.scaled_dot_product_attention(*by_head)
        return self.to_out(rearrange(attended, "b m s d -> b s (m d)"))


class ToyTransformer:
    """Implements `ditflow.models.protocols.Transformer`."""

    embedding_kind = "rotary"
    timestep_dtype = torch.float32

    def __init__(
        self,
        network: ToyTransformer3DModel,
        attention: str = "sdpa",
        compiled: bool = False,
        attention_forward: str | None = None,
    ):
        self.network = network.requires_grad_(False).eval()
        self.blocks = network.blocks
        self.attention = load_attention(attention)
        self.attention_forward = load_attention(attention_forward or attention)
        self.pieces = Pieces()
        if compiled:
            self.compile_pieces("inductor")

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.network.device

    def compile_pieces(self, backend: str) -> None:
        self.pieces = Pieces(*(compile_piece(piece, backend) for piece in Pieces()))

    def grid(self, latents: Tensor) -> Grid:
        return grid_of(latents)

    def embedding(self, grid: Grid) -> Tensor:
        angles = rotation_angles(grid, self.network.config.attention_head_dim).repeat_interleave(2, dim=-1)
        return torch.stack([torch.stack([angles.cos(), angles.sin()])] * 2).to(self.device)

    def embed(self, inputs: Inputs) -> tuple[Carried, Shared]:
        network, dtype = self.network, self.dtype
        video = network.patches(to_patches(inputs.latents).to(dtype))
        time, text = network.embedded(inputs.timestep), network.text(inputs.prompt.to(dtype))
        return (video,), Shared(time, inputs.embedding, text)

    def prepare(self, index: int, carried: Carried, shared: Shared) -> AttentionInputs:
        query, key, value, gate = self.pieces.prepare(self.blocks[index], carried[0], shared)
        return AttentionInputs(query, key, value, slice(0, None), (gate,))

    def key_value(self, index: int, carried: Carried, shared: Shared) -> KeyValue:
        block, attention = self.blocks[index], self.blocks[index].attn1
        tokens, _ = modulated(block, 0, carried[0], shared.time)
        key, value = attention.norm_k(attention.to_k(tokens)), attention.to_v(tokens)
        key, value = (rearrange(tensor, "b s (m d) -> b s m d", m=block.heads) for tensor in (key, value))
        return KeyValue(rotate(key, shared.rope[1]), value)

    def attend(self, inputs: AttentionInputs) -> Tensor:
        return self.attention(inputs.query, inputs.key, inputs.value)

    def attend_forward(self, inputs: AttentionInputs) -> Tensor:
        return self.attention_forward(inputs.query, inputs.key, inputs.value)

    def add_attention(
        self, index: int, carried: Carried, shared: Shared, inputs: AttentionInputs, attended: Tensor
    ) -> Carried:
        added = self.pieces.add_attention(self.blocks[index], carried[0], shared, inputs.gates[0], attended)
        return (added,)

    def feed_forward(self, index: int, carried: Carried, shared: Shared) -> Carried:
        return (self.pieces.feed_forward(self.blocks[index], carried[0], shared),)

    def feed_forward_backward(
        self, index: int, carried: Carried, shared: Shared, gradients: Carried
    ) -> Carried:
        """By plain autograd, which holds the whole hidden layer."""
        entering = tuple(part.detach().requires_grad_() for part in carried)
        with torch.enable_grad():
            leaving = self.feed_forward(index, entering, shared)
        return torch.autograd.grad(leaving, entering, gradients)

    def head(self, carried: Carried, shared: Shared, grid: Grid) -> Tensor:
        return to_latents(self.network.leaving(carried[0], shared.time), grid).float()


def prepare(block: ToyBlock, video: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key and value [1, S, heads, head_dim] and the gate of the attention's output."""
    tokens, gate = modulated(block, 0, video, shared.time)
    query, key, value = block.attn1.projected(tokens, tokens, block.heads)
    return rotate(query, shared.rope[0]), rotate(key, shared.rope[1]), value, gate


def add_attention(block: ToyBlock, video: Tensor, shared: Shared, gate: Tensor, attended: Tensor) -> Tensor:
    """Everything up to the feed-forward, cross-attention to the prompt included."""
    video = video + gate * block.attn1.to_out(rearrange(attended, "b s m d -> b s (m d)"))
    cross = block.attn2
    return video + cross.attended(*cross.projected(block.cross_norm(video), shared.text, block.heads))


def feed_forward(block: ToyBlock, video: Tensor, shared: Shared) -> Tensor:
    tokens, gate = modulated(block, 1, video, shared.time)
    return video + gate * block.ff(tokens)


class Pieces(NamedTuple):
    """The parts of a block around its attention: functions of a block and tensors, one for all blocks."""

    prepare: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = prepare
    add_attention: Callable[..., Tensor] = add_attention
    feed_forward: Callable[..., Tensor] = feed_forward


def modulated(block: ToyBlock, half: int, video: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """What enters a block's attention (0) or feed-forward (1), and the gate of what leaves it."""
    shift, scale, gate = block.modulation(time)[:, None].chunk(6, dim=-1)[3 * half : 3 * half + 3]
    norm = (block.norm1, block.norm2)[half]
    return norm(video) * (1 + scale) + shift, gate


def rotate(
    tensor: Tensor,  # [1, S, heads, head_dim]
    cos_sin: Tensor,  # [2, S, head_dim]
) -> Tensor:
    """Each pair of neighbouring channels turned by its angle, computed in float32."""
    cos, sin = cos_sin[:, :, None]
    even, odd = tensor.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (tensor * cos + turned * sin).to(tensor.dtype)


def grid_of(latents: Tensor) -> Grid:
    _, frames, _, height, width = latents.shape
    return Grid(frames, height // PATCH[0], width // PATCH[1])


def rotation_angles(grid: Grid, head_dim: int) -> Tensor:
    """[S, head_dim / 2] float32: a third of the pairs of channels turns with each axis."""
    pairs = head_dim // 6
    frequencies = PERIOD ** (-torch.arange(pairs) / pairs)
    frames, rows, columns = (torch.arange(side).float()[:, None] * frequencies for side in grid)
    return torch.cat(
        [
            repeat(frames, "f p -> (f h w) p", h=grid.height, w=grid.width),
            repeat(rows, "h p -> (f h w) p", f=grid.frames, w=grid.width),
            repeat(columns, "w p -> (f h w) p", f=grid.frames, h=grid.height),
        ],
        dim=-1,
    )


def to_patches(latents: Tensor) -> Tensor:
    """[1, frames, channels, height, width] to [1, S, channels of a patch]."""
    return rearrange(latents, "b f c (h p) (w q) -> b (f h w) (c p q)", p=PATCH[0], q=PATCH[1])


def to_latents(patches: Tensor, grid: Grid) -> Tensor:
    """The inverse of `to_patches`."""
    f, h, w = grid
    p, q = PATCH
    return rearrange(patches, "b (f h w) (c p q) -> b f c (h p) (w q)", f=f, h=h, w=w, p=p, q=q)
