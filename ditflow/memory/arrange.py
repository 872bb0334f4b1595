"""A model's weights where a preset wants them, and the Runner that computes with them there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.host import can_pin
from ditflow.memory.plain import PlainRunner
from ditflow.memory.presets import Preset
from ditflow.memory.streamed import Streamed, flat_bytes
from ditflow.memory.weights import Resident, Weights
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.protocols import Runner


def arrange(backbone: CogVideoX, device: torch.device, preset: Preset, resident: int) -> Runner:
    """A preset's Runner, with `resident` blocks on the device."""
    weights = place(backbone.transformer, backbone.blocks, device, resident)
    return runner_of(backbone, weights, preset.checkpoint, preset.boundaries)


def runner_of(backbone: CogVideoX, weights: Weights, checkpoint: str, boundaries: str) -> Runner:
    """The Runner of a checkpoint policy: `none`, `attention` or `block`."""
    if checkpoint == "none":
        return PlainRunner(backbone, weights)
    keep = "attention" if checkpoint == "attention" else "inputs"
    return BlockwiseRunner(backbone, weights, keep=keep, boundaries=boundaries)


def around(model: nn.Module, blocks: nn.ModuleList) -> list[Tensor]:
    """A model's tensors outside its blocks."""
    theirs = {id(tensor) for tensor in (*blocks.parameters(), *blocks.buffers())}
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in theirs]


def place(
    model: nn.Module, blocks: nn.ModuleList, device: torch.device, resident: int, host: str | None = None
) -> Weights:
    """The first `resident` blocks and what is around blocks on the device, other blocks in host memory."""
    if resident >= len(blocks):
        model.to(device)
        return Resident()
    for tensor in around(model, blocks):
        tensor.data = tensor.data.to(device)
    pinned = can_pin(sum(map(flat_bytes, blocks[resident:])))  # else as loading left them
    return Streamed(blocks, device, resident, host=host or ("pinned" if pinned else "pageable"))
