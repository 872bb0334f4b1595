"""Queries and keys as the Triton passes multiply them, and how the logits are cut into tiles and panels."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import e, log2, prod, sqrt
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ditflow_kernels.backends import check_triton_device
from ditflow_kernels.tuning import COMPILER_OPTIONS, ElementwiseTuning, ProductTuning, tuning_for

# Fewer panels are faster. These fit the flow of 49 frames of CogVideoX-5B in one panel, its loss in two.
FLOW_WORKSPACE_BYTES = 44 * 10**6
GRADIENT_WORKSPACE_BYTES = 560 * 10**6


class Panel(NamedTuple):
    """Neighbouring query tokens that a pass takes at once. All panels but the last are whole tiles."""

    first_query: int
    queries: int


@dataclass(frozen=True)
class TiledOperands:
    """The operands of `Q K^T`, its scale, and its tiles."""

    query: Tensor  # [tokens, channels], channels contiguous
    key: Tensor  # [tokens, channels], channels contiguous
    frames: int
    height: int
    width: int
    scale: float  # temperature / (heads * sqrt(head_dim))
    tiles: ProductTuning
    grad_logits_tuning: ElementwiseTuning
    launch: bool  # False: allocate, but launch nothing

    @classmethod
    def of(
        cls,
        query: Tensor,  # [S, heads, head_dim]
        key: Tensor,  # [S, heads, head_dim]
        grid: tuple[int, int, int],
        temperature: float,
        launch: bool,
    ) -> "TiledOperands":
        if launch:
            check_triton_device(query.device)
        frames, height, width = (int(size) for size in grid)
        heads, head_dim = (int(size) for size in query.shape[1:])
        tuning = tuning_for(query.device)
        return cls(
            _heads_concatenated(query),
            _heads_concatenated(key),
            frames,
            height,
            width,
            temperature / (heads * sqrt(head_dim)),
            tuning.motion_flow_float32 if query.dtype == torch.float32 else tuning.motion_flow,
            tuning.motion_flow_grad_logits,
            launch,
        )

    @property
    def tokens(self) -> int:
        return prod((self.frames, self.height, self.width))

    @property
    def cells(self) -> int:
        return self.height * self.width

    @property
    def channels(self) -> int:
        return int(self.query.shape[1])

    @property
    def scale_log2(self) -> float:
        """The scale that gives logits in base 2."""
        return self.scale * log2(e)

    @property
    def key_tiles(self) -> int:
        return triton.cdiv(self.tokens, self.tiles.block_n)

    @property
    def segments(self) -> int:
        """A segment is the overlap of a key tile and a frame, numbered by tile + frame."""
        return self.key_tiles + self.frames - 1

    @property
    def padded_keys(self) -> int:
        """Columns of a panel in memory: whole key tiles, so that each row is aligned for wide stores."""
        return self.key_tiles * self.tiles.block_n

    @property
    def unscaled_dtype(self) -> torch.dtype:
        """Dtype of gradients before their factor: bf16 has enough range for them, fp16 does not."""
        return torch.bfloat16 if self.query.dtype == torch.bfloat16 else torch.float32

    @property
    def flow_bytes(self) -> int:
        return 4 * 2 * self.frames * self.tokens

    @property
    def statistics_bytes_per_query(self) -> int:
        return 4 * 4 * self.segments

    @property
    def logits_bytes_per_query(self) -> int:
        return self.query.element_size() * self.padded_keys

    @property
    def product_options(self) -> dict[str, int | bool]:
        """Constants and launch options of the kernels that multiply queries by keys."""
        tiles = self.tiles
        return {
            "CHANNELS": self.channels,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_K": tiles.block_k,
            "GROUP_M": tiles.group_m,
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
            **COMPILER_OPTIONS,
        }

    def query_tiles(self, queries: int) -> int:
        return triton.cdiv(queries, self.tiles.block_m)

    def panel_size(self, bytes_per_query: int, budget: int) -> int:
        """Queries of a panel, in whole tiles: the fewest and most even panels within the budget."""
        tiles = self.query_tiles(self.tokens)
        most = max(1, budget // (bytes_per_query * self.tiles.block_m))
        return triton.cdiv(tiles, triton.cdiv(tiles, most)) * self.tiles.block_m

    def gradient_panel_size(self, bytes_per_query: int, budget: int) -> int:
        """The same for gradients: a float32 sum for the key gradient counts if there are several panels."""
        if (whole := self.panel_size(bytes_per_query, budget)) >= self.tokens:
            return whole
        sums = 0 if self.unscaled_dtype == torch.float32 else 4 * self.tokens * self.channels
        return self.panel_size(bytes_per_query, budget - sums)

    def key_gradient_dtype(self, panel_size: int) -> torch.dtype:
        """Dtype in which the key gradient is formed: float32 if several panels are added up."""
        return self.unscaled_dtype if panel_size >= self.tokens else torch.float32

    def panels(self, panel_size: int) -> Iterator[Panel]:
        for first in range(0, self.tokens, panel_size):
            yield Panel(first, min(panel_size, self.tokens - first))

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.query.device)


def _heads_concatenated(tokens: Tensor) -> Tensor:
    """[S, heads, head_dim] as [S, channels] with contiguous channels; copied only if no view has them."""
    flat = tokens.reshape(tokens.shape[0], -1)
    return flat if flat.stride(1) == 1 else flat.contiguous()
