"""The stage after `rope`: the attention of one block learns to follow what moves.

The loss keeps the velocity that `rope` predicts, and makes attention point to where a token's content goes.
Track4Gen (Jeong et al., CVPR 2025, arXiv 2412.06016) has a similar term for the features of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.small.training.latents import material
from ditflow.small.training.loop import Training
from ditflow.small.training.split import TRAINING_SEEDS, training_clips
from ditflow.small.training.transformer import (
    PlainAttention,
    grid_of,
    optimisers,
    trained_transformer,
    velocity_error,
)
from ditflow.small.truth import true_flow

STYLE = "rope"
BLOCK = 4  # the one that reads motion best without this stage
WEIGHT = 0.02  # of the attention's error, relative to the velocity's
BATCH = 8
RATE = 0.3  # share of the transformer stage's learning rates


def tracking_training(checkpoints: Path, device: torch.device) -> Training:
    """The further training of `rope`'s transformer.

    Raises DitflowError if `rope` has no checkpoint.
    """
    transformer, teacher = (trained_transformer(STYLE, checkpoints) for _ in range(2))
    for network in (transformer, teacher):
        if device.type == "cpu":
            network.set_attn_processor(PlainAttention())
        network.to(device)
    teacher.requires_grad_(False)
    watched = WatchedAttention()
    transformer.transformer_blocks[BLOCK].attn1.set_processor(watched)
    for block in [*transformer.transformer_blocks, *teacher.transformer_blocks]:
        if block.attn1.processor is not watched:
            block.compile()
    clips = material(checkpoints, device)
    error_of_velocity = velocity_error(transformer, clips, BATCH, teacher)
    grid = grid_of(transformer, clips.latents)
    flows = true_flows(grid, "small", TRAINING_SEEDS).to(device)

    def loss(generator: torch.Generator) -> Tensor:
        error, drawn = error_of_velocity(generator)
        return error + WEIGHT * tracking_error(watched.query, watched.key, flows[drawn], grid)

    optimising = optimisers(transformer, transformer.transformer_blocks, RATE)
    return Training(transformer, optimising, loss, checkpoints / "tracking.safetensors")


class WatchedAttention(PlainAttention):
    """Attention that keeps its last queries and keys of video tokens [clips, heads, tokens, head_dim]."""

    query: Tensor
    key: Tensor

    def look(self, query: Tensor, key: Tensor) -> None:
        self.query, self.key = query, key


def true_flows(grid: Grid, model: str, seeds: Sequence[int]) -> Tensor:
    """True motion of training clips [clips, frames, frames, height * width, 2] float16, in patches."""
    clips = training_clips(seeds, painted=slice(0))
    family, flows = family_of(model), []
    for clip in clips:
        spans = family.latent_spans(len(clip.centroids))
        flow, _ = true_flow(clip.centroids, clip.scene.radii, clip.frames.shape[2], grid, spans)
        flows.append(torch.from_numpy(flow).half())
    return torch.stack(flows)


def tracking_error(query: Tensor, key: Tensor, flow: Tensor, grid: Grid) -> Tensor:
    """Cross-entropy between attention and the true motion, over all pairs of different frames.

    `query`, `key` [clips, heads, tokens, head_dim], `flow` as in `true_flows`. Attention is as in motion
    flow: logits are averaged over heads, with a softmax per key frame. A goal between tokens is shared among
    the four around it. Moving tokens weigh as much in all as still ones, which are ten times as many.
    """
    heads, channels = query.shape[1], query.shape[3]
    query, key = (rearrange(side.float(), "b m s d -> b s (m d)") for side in (query, key))
    logits = query @ key.mT / (heads * channels**0.5)
    logits = rearrange(logits, "b (f n) (g p) -> b f g n p", f=grid.frames, g=grid.frames)
    surprise = -(logits.log_softmax(dim=-1) * _shares(flow, grid)).sum(dim=-1)  # [clips, f, g, n]
    others = ~torch.eye(grid.frames, dtype=torch.bool, device=flow.device)[None, :, :, None]
    moving = (flow != 0).any(dim=-1).any(dim=2, keepdim=True)  # towards any frame
    return sum(_mean(surprise, others & rows) for rows in (moving, ~moving)) / 2


def _shares(flow: Tensor, grid: Grid) -> Tensor:
    """The share of each token's goal in each token of a frame [..., height * width, height * width].

    Goals outside the picture are moved to its edge.
    """
    columns, rows = (torch.arange(size, device=flow.device) for size in (grid.width, grid.height))
    x = (columns.repeat(grid.height) + flow[..., 0].float()).clamp(0, grid.width - 1)
    y = (rows.repeat_interleave(grid.width) + flow[..., 1].float()).clamp(0, grid.height - 1)
    across = (1 - (x[..., None] - columns).abs()).clamp(min=0)
    down = (1 - (y[..., None] - rows).abs()).clamp(min=0)
    return (down[..., :, None] * across[..., None, :]).flatten(-2)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values, 0 if there are none; does not wait for the device."""
    chosen = chosen.expand_as(values)
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
