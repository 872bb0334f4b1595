"""Launch parameters of every Triton kernel, a frozen table by architecture: what runs is what was tested."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import triton


@dataclass(frozen=True)
class TokenLaunch:
    """A program owns one token and takes its heads a tile [heads, head_dim] at a time."""

    tile_elements: int  # heads x head_dim of a tile, each padded to a power of two
    num_warps: int
    num_stages: int  # tiles on their way


@dataclass(frozen=True)
class ProductLaunch:
    """A program multiplies a tile of queries with a tile of keys, a block of channels at a time."""

    block_m: int  # queries
    block_n: int  # keys
    block_k: int  # channels
    group_m: int  # tiles of queries that meet a tile of keys at about the same time
    num_warps: int
    num_stages: int  # blocks of channels on their way


@dataclass(frozen=True)
class RowLaunch:
    """A program takes some rows of a tile that a product left in memory."""

    block_rows: int
    num_warps: int


@dataclass(frozen=True)
class Launches:
    """How one architecture launches each kernel: a field is a kernel's name without `_kernel`.

    `motion_flow` is for the kernels that must agree on tiles: motion_flow_forward, _backward, _hard and
    the row kernels that read what they wrote, motion_flow_combine, _hard_combine, _activity.
    """

    qk_norm_rope_forward: TokenLaunch
    qk_norm_rope_backward: TokenLaunch
    motion_flow: ProductLaunch
    motion_flow_float32: ProductLaunch
    motion_flow_grad_logits: RowLaunch


# a 16-byte copy of bf16 a thread and tile; the three tiles of 48 heads of 64 are all on their way at once.
# With fewer threads, cos and sin of a head of 64 would be waited for before the first tile is asked for
FORWARD = TokenLaunch(tile_elements=1024, num_warps=4, num_stages=4)
# tiles of tokens and of gradients, two of each at once
BACKWARD = TokenLaunch(tile_elements=1024, num_warps=4, num_stages=3)

# mma.sync: 128 accumulators a thread, and two programs on a multiprocessor
MMA = ProductLaunch(block_m=128, block_n=128, block_k=32, group_m=8, num_warps=4, num_stages=4)
# 96 KiB of shared memory: two programs, so that one's epilogue hides behind the other's products
WGMMA = ProductLaunch(block_m=128, block_n=128, block_k=64, group_m=8, num_warps=4, num_stages=3)
# the epilogue takes the whole tile out of tensor memory at once: with four warps it would spill
TCGEN05 = ProductLaunch(block_m=128, block_n=128, block_k=64, group_m=8, num_warps=8, num_stages=4)
# float32 without tf32 has no matrix unit: small tiles
FLOAT32 = ProductLaunch(block_m=64, block_n=64, block_k=16, group_m=8, num_warps=4, num_stages=3)
# 32 elements a thread
GRAD_LOGITS = RowLaunch(block_rows=32, num_warps=4)

LAUNCHES: Mapping[int, Launches] = MappingProxyType(
    {
        80: Launches(FORWARD, BACKWARD, MMA, FLOAT32, GRAD_LOGITS),
        86: Launches(FORWARD, BACKWARD, MMA, FLOAT32, GRAD_LOGITS),
        89: Launches(FORWARD, BACKWARD, MMA, FLOAT32, GRAD_LOGITS),
        90: Launches(FORWARD, BACKWARD, WGMMA, FLOAT32, GRAD_LOGITS),
        100: Launches(FORWARD, BACKWARD, TCGEN05, FLOAT32, GRAD_LOGITS),
        120: Launches(FORWARD, BACKWARD, MMA, FLOAT32, GRAD_LOGITS),
    }
)
OLDEST = min(LAUNCHES)


def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0; the oldest in the table where there is no device to ask."""
    if device.type != "cuda":
        return OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def launches(device: torch.device) -> Launches:
    """The table's row for a device: of its architecture, else of the next older one."""
    ours = architecture(device)
    return LAUNCHES[max((known for known in LAUNCHES if known <= ours), default=OLDEST)]


def check_device(device: torch.device) -> None:
    """Raises ValueError where a Triton kernel cannot be launched."""
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(f"backend 'triton' needs a CUDA device, not {device}: use backend 'chunked'")
