"""How far a block's gradient is from float32 with rounded products: `python -m bench.block_gradient`.

One block of CogVideoX-5B with random weights and real channel sizes, but few video tokens, in float32 but for
what is in 8 bits. Compared is what the block itself adds: its output without its input, and the gradient of
its input, for a random gradient of its output, without that gradient. With them errors would look smaller.
Random weights have no outlier channels, so the second table makes some by the weights of the norms.
"""

import copy
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from bench.harness import CPU
from bench.subjects import CHANNELS, FAMILY, PATCH, random_inputs, random_network, shipped_config
from bench.tables import markdown
from ditflow.memory.plain import PlainRunner
from ditflow.models.compute import compute_in
from ditflow.models.protocols import Grid
from ditflow.models.storage import store_weights

GRID = Grid(3, 10, 15)
WAYS = {  # name: --compute, --weights
    "--weights int8": ("bf16", "int8"),
    "--compute int8-forward": ("int8-forward", "full"),
    "--compute int8": ("int8", "full"),
}
EVERY, FACTOR = 100, 30.0  # outlier channels: how many have one, and how much larger they are


class Found(NamedTuple):
    """Agreement with float32."""

    output: float  # cosine
    gradient: float  # cosine
    length: float  # the gradient's norm over that in float32


def main() -> None:
    for outliers in (False, True):
        title = f"every {EVERY}th channel {FACTOR:.0f} times as large" if outliers else "random weights"
        rows = [(name, *(f"{value:.5f}" for value in row)) for name, row in measure(outliers).items()]
        print(markdown([title, "output's cosine", "gradient's cosine", "gradient's length"], rows), "\n")
        sys.stdout.flush()


def measure(outliers: bool, shape: dict[str, Any] | None = None, grid: Grid = GRID) -> dict[str, Found]:
    """Each way's agreement; `shape` changes the block's configuration."""
    torch.manual_seed(0)
    network = random_network("5b", shipped_config("5b") | {"num_layers": 1} | (shape or {}))
    if outliers:
        block = network.transformer_blocks[0]
        for norm in (block.norm1.norm, block.norm2.norm):
            norm.weight.data[::EVERY] *= FACTOR
    exact, found = added(network, "bf16", "full", grid), {}
    for name, way in WAYS.items():
        output, gradient = added(network, *way, grid)
        length = gradient.norm() / exact[1].norm()
        found[name] = Found(cosine(output, exact[0]), cosine(gradient, exact[1]), length.item())
    return found


def added(network: nn.Module, compute: str, weights: str, grid: Grid) -> tuple[Tensor, Tensor]:
    """What the block adds to the video tokens, and to the gradient of its output on the way to its input."""
    transformer = FAMILY.transformer(copy.deepcopy(network), "sdpa", False)
    compute_in(compute, transformer.blocks, FAMILY.packed_parts, CPU)
    store_weights(transformer.blocks, FAMILY.packed_parts, weights, CPU)
    latents = 1, grid.frames, CHANNELS, PATCH * grid.height, PATCH * grid.width
    inputs, _ = random_inputs(transformer, latents, FAMILY.prompt_shape(network.config), CPU)
    carried, shared = transformer.embed(inputs)
    entering = tuple(part.detach().requires_grad_() for part in carried)
    with torch.enable_grad():
        leaving = PlainRunner(transformer).block(0, entering, shared, {})
    draw = torch.Generator().manual_seed(1)
    upstream = [torch.randn(part.shape, generator=draw) for part in leaving]
    gradient, _ = torch.autograd.grad(leaving, entering, upstream)
    return (leaving[0] - entering[0]).detach(), gradient - upstream[0]


def cosine(found: Tensor, exact: Tensor) -> float:
    return cosine_similarity(found.flatten().double(), exact.flatten().double(), dim=0).item()


if __name__ == "__main__":
    main()
