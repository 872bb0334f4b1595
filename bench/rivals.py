"""The sides of whole steps and runs: our Runners, and their rivals written over diffusers' own modules.

The released way does the work of the released DiTFlow code, written anew from what that code computes. Its
attention maps, one for each head, are the kernels' backend `reference`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint, noop_context_fn

from bench.harness import Call
from bench.subjects import TILE, Case, small_autoencoder
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.plain import PlainRunner
from ditflow.models.protocols import (
    Capture,
    Injected,
    Inputs,
    KeyValue,
    Loss,
    QueryKey,
    Runner,
    Transformer,
    Variable,
)
from ditflow_kernels.backends import FASTEST


class ReleasedWay:
    """Implements `ditflow.models.protocols.Runner` for rotary models and losses on queries and keys.

    Reference and injection passes go through the whole model. An optimisation forward goes to the end of the
    deepest guided block, checkpoints every block, and gives all weights on its way gradients that nothing
    reads or clears.
    """

    def __init__(self, transformer: Transformer):
        self.transformer, self.network = transformer, transformer.network.requires_grad_(True)
        self.taps = [Tap() for _ in transformer.blocks]
        for block, tap in zip(transformer.blocks, self.taps, strict=True):
            block.attn1.set_processor(tap)

    @torch.no_grad()
    def forward(self, batch: Sequence[Inputs], injected: Injected) -> list[Tensor]:
        with self._tapped((), injected):
            return [self._whole(inputs) for inputs in batch]

    @torch.no_grad()
    def features(self, inputs: Inputs, injected: Injected, capture: Capture) -> dict[int, Any]:
        with self._tapped(capture.blocks, injected):
            self._whole(inputs)
            return self._kept(capture)

    def gradient(
        self, loss: Loss, wrt: Variable, inputs: Inputs, injected: Injected, capture: Capture, scale: float
    ) -> tuple[Tensor, Tensor]:
        variable = getattr(inputs, wrt).detach().requires_grad_()
        with torch.enable_grad(), self._tapped(capture.blocks, injected):
            self._checkpointed(replace(inputs, **{wrt: variable}), capture.deepest)
            value = torch.stack([loss(block, read) for block, read in self._kept(capture).items()]).mean()
            (value * scale).backward()
        return value.detach(), variable.grad

    def _whole(self, inputs: Inputs) -> Tensor:
        latents, prompt = self._cast(inputs)
        given = {"image_rotary_emb": inputs.embedding, "return_dict": False}
        return self.network(latents, prompt, inputs.timestep, **given)[0].float()

    def _checkpointed(self, inputs: Inputs, deepest: int) -> None:
        model, text_length = self.network, inputs.prompt.shape[1]
        latents, prompt = self._cast(inputs)
        time = model.time_embedding(model.time_proj(inputs.timestep).to(latents))
        tokens = model.patch_embed(prompt, latents)
        text, video = tokens[:, :text_length], tokens[:, text_length:]
        # torch leaves `fake_tensors` during a backward, so the recomputation enters it again
        again = (lambda: (nullcontext(), fake_tensors())) if tokens.is_meta else noop_context_fn
        for block in model.transformer_blocks[: deepest + 1]:
            arguments = video, text, time, inputs.embedding
            video, text = checkpoint(
                block, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=again
            )

    def _cast(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        dtype = self.network.dtype
        return inputs.latents.to(dtype), inputs.prompt.to(dtype)

    @contextmanager
    def _tapped(self, kept: tuple[int, ...], injected: Injected) -> Iterator[None]:
        """Keep queries, keys and values of some blocks, and replace keys and values of others."""
        for index, tap in enumerate(self.taps):
            tap.keeps, tap.given = index in kept, injected.get(index)
        yield
        for tap in self.taps:
            tap.kept = tap.given = None

    def _kept(self, capture: Capture) -> dict[int, QueryKey | KeyValue]:
        kept = {index: self.taps[index].kept for index in capture.blocks}
        if capture.what == "query_key":
            return {index: QueryKey(query[0], key[0]) for index, (query, key, _) in kept.items()}
        return {index: KeyValue(key, value) for index, (_, key, value) in kept.items()}


class Tap:
    """An attention processor of diffusers that keeps or replaces what video tokens give to attention."""

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
            for computed, given in zip((key, value), self.given, strict=True):
                computed[:, :, text_length:] = given.transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attention.to_out[0](rearrange(attended, "b m s d -> b s (m d)"))
        return attended[:, text_length:], attended[:, :text_length]


RIVAL, PLAIN, WITH_OUR_LOSS = "released way", "plain", "released way with our loss"
SIDES: dict[str, tuple[Callable[[Transformer], Runner], str]] = {  # name: Runner and kernels' backend
    RIVAL: (ReleasedWay, "reference"),
    PLAIN: (PlainRunner, "chunked"),
    "attention kept": (partial(BlockwiseRunner, keep="attention"), "chunked"),
    "block by block": (BlockwiseRunner, "chunked"),
    WITH_OUR_LOSS: (ReleasedWay, "chunked"),
}


@contextmanager
def runner_of(side: str, case: Case) -> Iterator[Runner]:
    """A side's Runner on a model of its own; its kernels are used inside the context."""
    kind, backend = SIDES[side]
    with patch.dict(FASTEST, cpu=backend):
        yield kind(case.transformer())


def prepared(side: str, case: Case, work: Callable[[Runner], Call]) -> Call:
    """A side's work, prepared with its Runner; each call uses its kernels."""
    with runner_of(side, case) as runner:
        call = work(runner)

    def with_its_kernels() -> Any:
        with patch.dict(FASTEST, cpu=SIDES[side][1]):
            return call()

    return with_its_kernels


def in_a_batch(case: Case, first: Inputs, second: Inputs) -> Call:
    """Both predictions of a denoising step as diffusers' pipeline computes them."""
    network, both = case.transformer().network, (first, second)
    latents, prompts = (torch.cat([getattr(each, name) for each in both]) for name in ("latents", "prompt"))
    rope = tuple(first.embedding[0])  # the same for queries and keys

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        given = {"image_rotary_emb": rope, "return_dict": False}
        return network(latents, prompts, first.timestep.expand(2), **given)[0].chunk(2)

    return call


def plain_encoding(pixels: Tensor) -> dict[str, Callable[[], Call]]:
    """diffusers' autoencoder called directly."""
    video = (pixels / 127.5 - 1).permute(3, 0, 1, 2)[None]  # [1, 3, frames, height, width]
    return _autoencoders(lambda vae: vae.encode(video).latent_dist.mode())


def plain_decoding(latents: Tensor) -> dict[str, Callable[[], Call]]:
    scaled = latents.transpose(1, 2)
    return _autoencoders(lambda vae: vae.decode(scaled / vae.config.scaling_factor).sample)


def _autoencoders(run: Callable[[Any], Tensor]) -> dict[str, Callable[[], Call]]:
    def make(tile: str) -> Call:
        autoencoder = small_autoencoder()
        autoencoder.use_tile(tile)
        return partial(torch.no_grad()(run), autoencoder.network)

    tiles = {"diffusers, the same tiles": TILE, "diffusers, whole frames": "none"}
    return {name: partial(make, tile) for name, tile in tiles.items()}
