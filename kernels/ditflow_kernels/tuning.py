"""Launch parameters of every Triton kernel: a frozen table by architecture, so that what runs was tested."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
import triton

# of every kernel. Products and sums are fused, whatever the default, which Triton 3.10 is to change
COMPILER_OPTIONS: Mapping[str, bool] = MappingProxyType({"enable_fp_fusion": True})


@dataclass(frozen=True)
class TokenTuning:
    """For kernels whose program owns one token and loops over tiles of it."""

    tile_elements: int  # of a tile [heads, head_dim], each padded to a power of two; or channels
    num_warps: int
    num_stages: int  # tiles in flight


@dataclass(frozen=True)
class WholeTokenTuning:
    """For kernels whose program holds all of a token in registers."""

    thread_elements: int  # of the token, its heads and head_dim padded to powers of two

    def num_warps(self, elements: int) -> int:
        """For tokens of so many elements, a power of two."""
        return min(max(elements // (32 * self.thread_elements), 1), 32)


@dataclass(frozen=True)
class ProductTuning:
    """For kernels that multiply a tile of rows by a tile of columns, one block of channels at a time."""

    block_m: int  # rows: queries, or tokens
    block_n: int  # columns: keys, or outputs
    block_k: int  # channels
    group_m: int  # row tiles that share a column tile while L2 holds it
    num_warps: int
    num_stages: int  # blocks of channels in flight


@dataclass(frozen=True)
class ElementwiseTuning:
    """For kernels that update a tile of queries and keys in memory."""

    block_m: int  # queries
    num_warps: int


@dataclass(frozen=True)
class Tuning:
    """One architecture's parameters. A field is a kernel's name without `_kernel`.

    `motion_flow` covers the kernels that must agree on tiles: the products motion_flow_forward, _backward and
    _hard, and motion_flow_combine, _hard_combine and _activity, which share their query tiles.
    `qk_norm_rope_all_heads` is for qk_norm_rope_forward and _backward with a norm over all heads.
    """

    qk_norm_rope_forward: TokenTuning
    qk_norm_rope_backward: TokenTuning
    qk_norm_rope_all_heads: WholeTokenTuning
    motion_flow: ProductTuning
    motion_flow_float32: ProductTuning
    motion_flow_grad_logits: ElementwiseTuning
    int8_linear_round: TokenTuning
    int8_linear_product: ProductTuning


# each thread copies 16 bytes of bf16 a tile; all three tiles of 48 heads of 64 are in flight at once.
# Fewer threads would have to wait for the cos and sin of a head of 64 before they request the first tile
NORM_ROPE_FORWARD = TokenTuning(tile_elements=1024, num_warps=4, num_stages=4)
# two tiles of inputs and two of gradients in flight
NORM_ROPE_BACKWARD = TokenTuning(tile_elements=1024, num_warps=4, num_stages=3)
# 40 heads of 128 take eight warps and 64 registers: four programs a multiprocessor, 40 KiB of bf16 in flight.
# With half the elements a thread only two programs fit
NORM_ROPE_ALL_HEADS = WholeTokenTuning(thread_elements=32)

# mma.sync: 128 accumulators a thread, two programs a multiprocessor
MMA_SYNC = ProductTuning(block_m=128, block_n=128, block_k=32, group_m=8, num_warps=4, num_stages=4)
# 96 KiB of shared memory: two programs, so that one's epilogue overlaps the other's product
WGMMA = ProductTuning(block_m=128, block_n=128, block_k=64, group_m=8, num_warps=4, num_stages=3)
# from Triton 3.8 the same tile takes more registers: four warps would spill
if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):
    WGMMA = replace(WGMMA, num_warps=8)
# the epilogue reads the whole tile from tensor memory at once: four warps would spill
TCGEN05 = ProductTuning(block_m=128, block_n=128, block_k=64, group_m=8, num_warps=8, num_stages=4)
# float32 without tf32 has no matrix unit: small tiles
FLOAT32 = ProductTuning(block_m=64, block_n=64, block_k=16, group_m=8, num_warps=4, num_stages=3)
# a token is read twice, the second time from cache: 16 bytes of int8 a thread and tile
ROUND = TokenTuning(tile_elements=2048, num_warps=4, num_stages=3)
# in bytes the same tiles as those of 16 bits. Triton has no tcgen05 for int8, so sm_100 takes mma.sync
INT8_MMA_SYNC = ProductTuning(block_m=128, block_n=128, block_k=64, group_m=8, num_warps=4, num_stages=4)
INT8_WGMMA = ProductTuning(block_m=128, block_n=128, block_k=128, group_m=8, num_warps=4, num_stages=3)
# 32 elements a thread
GRAD_LOGITS = ElementwiseTuning(block_m=32, num_warps=4)


def _tuning(product: ProductTuning, int8_product: ProductTuning) -> Tuning:
    """Architectures differ in their matrix unit only."""
    preparation = NORM_ROPE_FORWARD, NORM_ROPE_BACKWARD, NORM_ROPE_ALL_HEADS
    return Tuning(*preparation, product, FLOAT32, GRAD_LOGITS, ROUND, int8_product)


TUNING: Mapping[int, Tuning] = MappingProxyType(
    {
        80: _tuning(MMA_SYNC, INT8_MMA_SYNC),
        86: _tuning(MMA_SYNC, INT8_MMA_SYNC),
        89: _tuning(MMA_SYNC, INT8_MMA_SYNC),
        90: _tuning(WGMMA, INT8_WGMMA),
        100: _tuning(TCGEN05, INT8_MMA_SYNC),
        120: _tuning(MMA_SYNC, INT8_MMA_SYNC),
    }
)
OLDEST = min(TUNING)


def architecture(device: torch.device) -> int:
    """Compute capability times ten: 9.0 is 90. The table's oldest if the device is not a CUDA device."""
    if device.type != "cuda":
        return OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tuning_for(device: torch.device) -> Tuning:
    """The table's entry for the device's architecture, or else for the nearest older one."""
    ours = architecture(device)
    return TUNING[max((known for known in TUNING if known <= ours), default=OLDEST)]
