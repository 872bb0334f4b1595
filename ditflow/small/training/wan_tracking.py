"""The stage after `wan`: the attention of one block learns to follow what moves, as in `tracking`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ditflow.small.training.latents import WAN, material
from ditflow.small.training.loop import Training
from ditflow.small.training.split import TRAINING_SEEDS
from ditflow.small.training.tracking import RATE, WEIGHT, tracking_error, true_flows
from ditflow.small.training.transformer import optimisers
from ditflow.small.training.wan_transformer import (
    PlainWanAttention,
    plain_attention,
    trained_wan_transformer,
    wan_grid,
    wan_velocity_error,
)

NAME = "wan-tracking.safetensors"
BLOCK = 5  # the guided one


def wan_tracking_training(checkpoints: Path, device: torch.device) -> Training:
    """The further training of small-wan's transformer. Raises DitflowError if `wan` has no checkpoint."""
    transformer, teacher = (trained_wan_transformer(checkpoints) for _ in range(2))
    for network in (transformer, teacher):
        plain_attention(network)
        network.to(device)
    teacher.requires_grad_(False)
    watched = WatchedWanAttention()
    transformer.blocks[BLOCK].attn1.set_processor(watched)
    for block in [*transformer.blocks, *teacher.blocks]:
        if block.attn1.processor is not watched:
            block.compile()
    clips = material(checkpoints, device, WAN)
    error_of_velocity = wan_velocity_error(transformer, clips, teacher)
    grid = wan_grid(clips.latents)
    flows = true_flows(grid, "small-wan", TRAINING_SEEDS[: WAN.clips]).to(device)

    def loss(generator: torch.Generator) -> Tensor:
        error, drawn = error_of_velocity(generator)
        return error + WEIGHT * tracking_error(watched.query, watched.key, flows[drawn], grid)

    optimising = optimisers(transformer, transformer.blocks, RATE)
    return Training(transformer, optimising, loss, checkpoints / NAME)


class WatchedWanAttention(PlainWanAttention):
    """Attention that keeps its last queries and keys of video tokens [clips, heads, tokens, head_dim]."""

    query: Tensor
    key: Tensor

    def look(self, query: Tensor, key: Tensor) -> None:
        self.query, self.key = query, key
