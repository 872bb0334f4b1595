"""Places a model's weights as a preset says, and makes the preset's Runner."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.host import can_pin
from ditflow.memory.plain import PlainRunner
from ditflow.memory.presets import Preset
from ditflow.memory.resident import Resident
from ditflow.memory.streamed import Streamed, flat_bytes
from ditflow.models.protocols import Runner, Transformer, Weights


def arrange(transformer: Transformer, device: torch.device, preset: Preset, resident: int) -> Runner:
    """Place the weights, with `resident` blocks on the device, and return the preset's Runner."""
    weights = place(transformer.network, transformer.blocks, device, resident)
    return make_runner(transformer, weights, preset.checkpoint, preset.block_inputs)


def make_runner(transformer: Transformer, weights: Weights, checkpoint: str, block_inputs: str) -> Runner:
    """The Runner of a checkpoint policy: `none`, `attention` or `block`."""
    if checkpoint == "none":
        return PlainRunner(transformer, weights)
    keep = "attention" if checkpoint == "attention" else "inputs"
    return BlockwiseRunner(transformer, weights, keep=keep, block_inputs=block_inputs)


def outside(network: nn.Module, blocks: nn.ModuleList) -> list[Tensor]:
    """A network's tensors outside its blocks."""
    inside = {id(tensor) for tensor in (*blocks.parameters(), *blocks.buffers())}
    return [tensor for tensor in (*network.parameters(), *network.buffers()) if id(tensor) not in inside]


def place(
    network: nn.Module, blocks: nn.ModuleList, device: torch.device, resident: int, host: str | None = None
) -> Weights:
    """Put the first `resident` blocks and everything outside blocks on the device; stream the other blocks.

    `host`: how streamed blocks are kept, see `Streamed`; by default pinned, if there is enough host memory.
    """
    if resident >= len(blocks):
        network.to(device)
        return Resident()
    for tensor in outside(network, blocks):
        tensor.data = tensor.data.to(device)
    pinned = can_pin(sum(map(flat_bytes, blocks[resident:])))
    return Streamed(blocks, device, resident, host=host or ("pinned" if pinned else "pageable"))
