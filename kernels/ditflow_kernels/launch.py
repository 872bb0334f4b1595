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
class Launches:
    """How one architecture launches each kernel: a field is a kernel's name without `_kernel`."""

    qk_norm_rope_forward: TokenLaunch
    qk_norm_rope_backward: TokenLaunch


# 16 elements a thread, two 16-byte copies of bf16; the next tiles come in while one is worked on
FORWARD = TokenLaunch(tile_elements=1024, num_warps=2, num_stages=3)
# the backward pass holds tokens, gradients and the sums over heads at once: half as many a thread
BACKWARD = TokenLaunch(tile_elements=1024, num_warps=4, num_stages=3)

LAUNCHES: Mapping[int, Launches] = MappingProxyType(
    {
        80: Launches(qk_norm_rope_forward=FORWARD, qk_norm_rope_backward=BACKWARD),
        86: Launches(qk_norm_rope_forward=FORWARD, qk_norm_rope_backward=BACKWARD),
        89: Launches(qk_norm_rope_forward=FORWARD, qk_norm_rope_backward=BACKWARD),
        90: Launches(qk_norm_rope_forward=FORWARD, qk_norm_rope_backward=BACKWARD),
        100: Launches(qk_norm_rope_forward=FORWARD, qk_norm_rope_backward=BACKWARD),
        120: Launches(qk_norm_rope_forward=FORWARD, qk_norm_rope_backward=BACKWARD),
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
