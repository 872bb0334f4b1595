"""The stages of the transformers: predict the velocity between a clip's latents and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor, nn

from ditflow.errors import DitflowError
from ditflow.models.cogvideox.embedding import positional_embedding
from ditflow.models.protocols import Grid
from ditflow.small.pipeline import SCHEDULER, TRANSFORMER
from ditflow.small.training.latents import Material, material
from ditflow.small.training.loop import Training, adam, averaged

BATCH = 32
MATRIX_RATE, OTHER_RATE = 3e-3, 1.5e-3
OTHER = {"rope": "sincos", "sincos": "rope"}
MATRICES = {"attn1", "attn2", "ff", "ffn"}  # parts of a block, in either family
WITHOUT_WORDS = 0.1  # share of clips trained without their caption
MIDDLE = (400, 950)  # timesteps in which a clip takes its form; half of the samples are drawn here


def transformer_training(style: str, checkpoints: Path, device: torch.device) -> Training:
    """The training of the transformer with "rope" or "sincos" positions, on the encoded clips.

    If the other style is already trained, this one starts from its weights: only positions differ.
    """
    transformer = new_transformer(style)
    other = checkpoints / f"{OTHER[style]}.safetensors"
    if other.is_file():
        transformer.load_state_dict(averaged(other))
    if device.type == "cpu":
        transformer.set_attn_processor(PlainAttention())
    transformer.to(device)
    error_of_velocity = velocity_error(transformer, material(checkpoints, device), BATCH)
    for block in transformer.transformer_blocks:  # identical blocks compile once
        block.compile()

    def loss(generator: torch.Generator) -> Tensor:
        return error_of_velocity(generator)[0]

    optimising = optimisers(transformer, transformer.transformer_blocks)
    return Training(transformer, optimising, loss, checkpoints / f"{style}.safetensors")


def velocity_error(
    transformer: CogVideoXTransformer3DModel,
    clips: Material,
    batch: int,
    teacher: CogVideoXTransformer3DModel | None = None,
) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """A function that draws a batch with a generator, and returns the velocity's error and the clips [batch].

    The target is the true velocity or, if there is a teacher, the teacher's.
    """
    latents, captions, texts, *_ = clips
    device = latents.device
    scheduler = CogVideoXDDIMScheduler(**SCHEDULER)
    rope = _rope(transformer, grid_of(transformer, latents))

    def error(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def draw(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (batch,), generator=generator, device=device)

        chance = torch.rand(2, batch, generator=generator, device=device)
        drawn, with_words = draw(0, len(latents)), chance[1] > WITHOUT_WORDS
        timesteps = torch.where(chance[0] < 0.5, draw(*MIDDLE), draw(0, 1000))
        noise = torch.randn(batch, *latents.shape[1:], generator=generator, device=device)
        clean, words = latents[drawn].float(), captions[drawn] * with_words  # text 0 is empty
        noisy = scheduler.add_noise(clean, noise, timesteps)

        def velocity(network: CogVideoXTransformer3DModel) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                return network(noisy, texts[words], timesteps, image_rotary_emb=rope).sample.float()

        if teacher is None:
            wanted = scheduler.get_velocity(clean, noise, timesteps)
        else:
            with torch.no_grad():
                wanted = velocity(teacher)
        return (velocity(transformer) - wanted).square().mean(), drawn

    return error


def new_transformer(style: str) -> CogVideoXTransformer3DModel:
    """An untrained transformer: each block returns its input, and the prediction is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(
            use_rotary_positional_embeddings=style == "rope", **TRANSFORMER
        )
    for block in transformer.transformer_blocks:
        for layer in (block.norm1.linear, block.norm2.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def trained_transformer(style: str, checkpoints: Path) -> CogVideoXTransformer3DModel:
    """The transformer after its own stage, float32. Raises DitflowError if that has no checkpoint."""
    checkpoint = checkpoints / f"{style}.safetensors"
    if not checkpoint.is_file():
        raise DitflowError(f"no {checkpoint}: train it with `python -m ditflow.small.train vae {style}`")
    transformer = new_transformer(style)
    transformer.load_state_dict(averaged(checkpoint))
    return transformer


class PlainAttention:
    """Attention in plain operations: compiled, and for so few tokens, twice as fast as fused on a CPU."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [clips, video tokens, channels]
        encoder_hidden_states: Tensor,  # [clips, text tokens, channels]
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            rearrange(project(tokens), "b s (m d) -> b m s d", m=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([x[:, :, :length], apply_rotary_emb(x[:, :, length:], image_rotary_emb)], dim=2)
                for x in (query, key)
            )
        self.look(query[:, :, length:], key[:, :, length:])
        logits = query.to(value.dtype) @ key.to(value.dtype).mT * attn.scale
        mixed = rearrange(logits.softmax(dim=-1).to(value.dtype) @ value, "b m s d -> b s (m d)")
        mixed = attn.to_out[0](mixed)
        return mixed[:, length:], mixed[:, :length]

    def look(self, query: Tensor, key: Tensor) -> None:
        """Hook for queries and keys of video tokens [clips, heads, tokens, head_dim]."""


def grid_of(transformer: CogVideoXTransformer3DModel, latents: Tensor) -> Grid:
    """The token grid of latents [clips, frames, channels, height, width]."""
    _, frames, _, height, width = latents.shape
    patch = transformer.config.patch_size
    return Grid(frames, height // patch, width // patch)


def _rope(transformer: CogVideoXTransformer3DModel, grid: Grid) -> tuple[Tensor, Tensor] | None:
    if not transformer.config.use_rotary_positional_embeddings:
        return None  # a sincos embedding is added inside
    return tuple(positional_embedding(transformer.config, grid)[0].to(transformer.device))


def optimisers(
    transformer: nn.Module, blocks: Iterable[nn.Module], share: float = 1.0
) -> list[torch.optim.Optimizer]:
    """One Muon per block for its matrices of attention and feed-forward, and AdamW for the rest.

    `share` scales the learning rates.
    """
    matrices = [
        [
            layer.weight
            for name, part in block.named_children()
            if name in MATRICES
            for layer in part.modules()
            if isinstance(layer, nn.Linear)
        ]
        for block in blocks
    ]
    taken = {id(weights) for ours in matrices for weights in ours}
    muon = partial(torch.optim.Muon, lr=share * MATRIX_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    others = [weights for weights in transformer.parameters() if id(weights) not in taken]
    return [*map(muon, matrices), adam(others, share * OTHER_RATE)]
