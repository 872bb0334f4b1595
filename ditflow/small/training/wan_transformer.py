"""The stage of small-wan's transformer: predict the velocity from a clip's latents to noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

from ditflow.errors import DitflowError
from ditflow.models.protocols import Grid
from ditflow.small.pipeline import TEXT_LENGTH
from ditflow.small.training.latents import WAN, Material, material
from ditflow.small.training.loop import Training, averaged
from ditflow.small.training.transformer import WITHOUT_WORDS, optimisers
from ditflow.small.wan_pipeline import FLOW_SHIFT, PROMPT_LENGTH, TRANSFORMER

NAME = "wan.safetensors"
BATCH = 8


def wan_training(checkpoints: Path, device: torch.device) -> Training:
    """The training of the transformer on the encoded clips."""
    transformer = new_wan_transformer()
    plain_attention(transformer)
    transformer.to(device)
    error_of_velocity = wan_velocity_error(transformer, material(checkpoints, device, WAN))
    for block in transformer.blocks:  # identical blocks compile once
        block.compile()

    def loss(generator: torch.Generator) -> Tensor:
        return error_of_velocity(generator)[0]

    return Training(transformer, optimisers(transformer, transformer.blocks), loss, checkpoints / NAME)


def wan_velocity_error(
    transformer: WanTransformer3DModel, clips: Material, teacher: WanTransformer3DModel | None = None
) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws a batch with a generator, and returns the velocity's error and the clips [BATCH].

    The target is the true velocity or, if there is a teacher, the teacher's.
    """
    latents, captions, texts, *_ = clips
    device = latents.device

    def error(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chance = torch.rand(2, BATCH, generator=generator, device=device)
        drawn = torch.randint(0, len(latents), (BATCH,), generator=generator, device=device)
        level = FLOW_SHIFT * chance[0] / (1 + (FLOW_SHIFT - 1) * chance[0])
        noise = torch.randn(BATCH, *latents.shape[1:], generator=generator, device=device)
        clean, words = latents[drawn].float(), captions[drawn] * (chance[1] > WITHOUT_WORDS)
        share = level.view(-1, 1, 1, 1, 1)
        given = clean + share * (noise - clean), texts[words], 1000 * level
        wanted = noise - clean
        if teacher is not None:
            with torch.no_grad():
                wanted = predictor(teacher)(*given)
        return (predictor(transformer)(*given) - wanted).square().mean(), drawn

    return error


def predictor(transformer: WanTransformer3DModel) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(noisy latents [clips, frames, channels, height, width], texts, timesteps) -> velocity, float32."""

    def predict(noisy: Tensor, texts: Tensor, timesteps: Tensor) -> Tensor:
        noisy = rearrange(noisy, "b f c h w -> b c f h w")
        with torch.autocast(noisy.device.type, torch.bfloat16):
            velocity = transformer(noisy, timesteps, texts).sample.float()
        return rearrange(velocity, "b c f h w -> b f c h w")

    return predict


def new_wan_transformer() -> WanTransformer3DModel:
    """An untrained transformer: each block returns its input, and the prediction is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        transformer = WanTransformer3DModel(**TRANSFORMER)
    embedder = transformer.condition_embedder
    texts = [block.attn2.to_out[0] for block in transformer.blocks]
    for layer in (transformer.proj_out, embedder.time_proj, *texts):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for block in transformer.blocks:
        nn.init.zeros_(block.scale_shift_table)
    return transformer


def trained_wan_transformer(checkpoints: Path) -> WanTransformer3DModel:
    """The trained transformer, float32. Raises DitflowError if it has no checkpoint."""
    checkpoint = checkpoints / NAME
    if not checkpoint.is_file():
        raise DitflowError(f"no {checkpoint}: train it with `python -m ditflow.small.train wan-vae wan`")
    transformer = new_wan_transformer()
    transformer.load_state_dict(averaged(checkpoint))
    return transformer


def plain_attention(transformer: WanTransformer3DModel) -> None:
    """Replace the attention of every block; see `PlainWanAttention`."""
    for block in transformer.blocks:
        block.attn1.set_processor(PlainWanAttention())
        block.attn2.set_processor(PlainWanAttention())


class PlainWanAttention:
    """Attention in plain operations, which compiled is faster than fused for so few tokens.

    A run's prompts have 512 tokens, of which all beyond the caption are alike. Training has few: the last one
    counts as all the missing ones.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,  # [clips, video tokens, channels]
        encoder_hidden_states: Tensor | None = None,  # [clips, text tokens, channels]
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(context)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        query, key, value = (rearrange(x.to(value.dtype), "b s m d -> b m s d") for x in (query, key, value))
        if encoder_hidden_states is None:
            self.look(query, key)
        logits = (query @ key.mT).float() * query.shape[-1] ** -0.5
        if encoder_hidden_states is not None:
            last = torch.arange(context.shape[1], device=context.device) == context.shape[1] - 1
            logits = logits + last * math.log(1 + PROMPT_LENGTH - TEXT_LENGTH)
        mixed = rearrange(logits.softmax(dim=-1).to(value.dtype) @ value, "b m s d -> b s (m d)")
        return attn.to_out[0](mixed)

    def look(self, query: Tensor, key: Tensor) -> None:
        """Hook for queries and keys of video tokens [clips, heads, tokens, head_dim]."""


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def wan_grid(latents: Tensor) -> Grid:
    """The token grid of latents [clips, frames, channels, height, width]."""
    return Grid(latents.shape[1], latents.shape[3] // 2, latents.shape[4] // 2)
