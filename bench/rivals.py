"""The rival of a whole run: the work that the released DiTFlow code does, done the way it does it.

Written anew from what that code computes, over diffusers' own layers; none of it is here. Its attention maps,
one a head, are the kernels' backend `reference`, which whoever runs this has to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.protocols import Injected, Inputs, KeyValue, Loss, QueryKey, Until, Variable


class ReleasedWay:
    """Implements `ditflow.models.protocols.Runner` for rotary models and losses on queries and keys.

    Reference and injection passes go through the whole model, what they are for is taken on the way. An
    optimisation forward goes through all of the deepest guided block, every block is checkpointed, and every
    weight on the way gets a gradient, which nothing reads and nothing clears.
    """

    def __init__(self, backbone: CogVideoX):
        self.backbone = backbone
        self.transformer = backbone.transformer.requires_grad_(True)
        self.taps = [Tap() for _ in self.transformer.transformer_blocks]
        for block, tap in zip(self.transformer.transformer_blocks, self.taps, strict=True):
            block.attn1.set_processor(tap)

    @torch.no_grad()
    def forward(self, several: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        with self._tapped((), injected):
            return [self._whole(inputs) for inputs in several]

    @torch.no_grad()
    def features(self, inputs: Inputs, injected: Injected, until: Until) -> dict[int, Any]:
        with self._tapped(until.blocks, injected):
            self._whole(inputs)
            return self._kept(until)

    def gradient(
        self, loss: Loss, wrt: Variable, inputs: Inputs, injected: Injected, until: Until, scale: float
    ) -> tuple[Tensor, Tensor]:
        variable = getattr(inputs, wrt).detach().requires_grad_()
        with torch.enable_grad(), self._tapped(until.blocks, injected):
            self._checkpointed(replace(inputs, **{wrt: variable}), until.deepest)
            value = torch.stack([loss(block, read) for block, read in self._kept(until).items()]).mean()
            (value * scale).backward()
        return value.detach(), variable.grad

    def _whole(self, inputs: Inputs) -> Tensor:
        latents, prompt = self._cast(inputs)
        rope = inputs.embedding
        return self.transformer(latents, prompt, inputs.timestep, image_rotary_emb=rope, return_dict=False)[
            0
        ].float()

    def _checkpointed(self, inputs: Inputs, deepest: int) -> None:
        model, text_length = self.transformer, inputs.prompt.shape[1]
        latents, prompt = self._cast(inputs)
        time = model.time_embedding(model.time_proj(inputs.timestep).to(latents))
        tokens = model.patch_embed(prompt, latents)
        text, video = tokens[:, :text_length], tokens[:, text_length:]
        for block in model.transformer_blocks[: deepest + 1]:
            arguments = video, text, time, inputs.embedding
            video, text = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)

    def _cast(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        dtype = self.transformer.dtype
        return inputs.latents.to(dtype), inputs.prompt.to(dtype)

    @contextmanager
    def _tapped(self, kept: tuple[int, ...], injected: Injected) -> Iterator[None]:
        """Queries, keys and values are kept in some blocks, and take the place of a block's own in others."""
        for index, tap in enumerate(self.taps):
            tap.keeps, tap.given = index in kept, injected.get(index)
        yield
        for tap in self.taps:
            tap.kept = tap.given = None

    def _kept(self, until: Until) -> dict[int, QueryKey | KeyValue]:
        kept = {index: self.taps[index].kept for index in until.blocks}
        if until.what == "query_key":
            return {index: QueryKey(query[0], key[0]) for index, (query, key, _) in kept.items()}
        return {index: KeyValue(key, value) for index, (_, key, value) in kept.items()}


class Tap:
    """An attention processor of diffusers that keeps what a block's video tokens bring to its attention, or
    replaces their keys and values."""

    def __init__(self):
        self.keeps = False
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None  # query, key, value [1, S, heads, head_dim]
        self.given: KeyValue | None = None

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,  # [1, S, channels]
        encoder_hidden_states: Tensor,  # [1, T, channels]
        attention_mask: None = None,
        image_rotary_emb: Tensor | None = None,  # [2 (q, k), 2 (cos, sin), S, head_dim]
    ) -> tuple[Tensor, Tensor]:
        text_length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            rearrange(project(tokens), "b s (m d) -> b m s d", m=attention.heads)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        query, key = attention.norm_q(query), attention.norm_k(key)
        for turned, rope in zip((query, key), image_rotary_emb, strict=True):
            turned[:, :, text_length:] = apply_rotary_emb(turned[:, :, text_length:], tuple(rope))
        if self.keeps:
            self.kept = tuple(each[:, :, text_length:].transpose(1, 2) for each in (query, key, value))
        if self.given is not None:
            for own, given in zip((key, value), self.given, strict=True):
                own[:, :, text_length:] = given.transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attention.to_out[0](rearrange(attended, "b m s d -> b s (m d)"))
        return attended[:, text_length:], attended[:, :text_length]
