"""One motion flow problem as the Triton passes see it, and how it is cut into tiles and panels."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import e, log2, prod, sqrt
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ditflow_kernels.tuning import ProductLaunch, RowLaunch, check_device, launches

# Fewest panels are fastest: the flow of 49 frames of CogVideoX-5B in one, its loss in two.
FLOW_WORKSPACE_BYTES = 44 * 10**6
GRADIENT_WORKSPACE_BYTES = 560 * 10**6


class Panel(NamedTuple):
    """Neighbouring query tokens that a pass takes at a time; all but the last panel are whole tiles."""

    first: int
    rows: int


@dataclass(frozen=True)
class Problem:
    """What every pass over the logits reads."""

    query: Tensor  # [tokens, channels], unit steps in channels
    key: Tensor  # [tokens, channels]
    frames: int
    height: int
    width: int
    scale: float  # temperature / (heads * sqrt(head_dim))
    tiles: ProductLaunch
    rows: RowLaunch
    launch: bool  # False: allocate what a launch would, and leave the launch out

    @classmethod
    def of(
        cls,
        query: Tensor,  # [S, heads, head_dim]
        key: Tensor,  # [S, heads, head_dim]
        grid: tuple[int, int, int],
        temperature: float,
        launch: bool,
    ) -> "Problem":
        if launch:
            check_device(query.device)
        frames, height, width = (int(size) for size in grid)
        heads, head_dim = (int(size) for size in query.shape[1:])
        table = launches(query.device)
        return cls(
            _side_by_side(query),
            _side_by_side(key),
            frames,
            height,
            width,
            temperature / (heads * sqrt(head_dim)),
            table.motion_flow_float32 if query.dtype == torch.float32 else table.motion_flow,
            table.motion_flow_grad_logits,
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
    def scale_of_base_2(self) -> float:
        return self.scale * log2(e)

    @property
    def key_tiles(self) -> int:
        return triton.cdiv(self.tokens, self.tiles.block_n)

    @property
    def segments(self) -> int:
        """A segment is what a tile and a frame of keys share; tile + frame numbers them."""
        return self.key_tiles + self.frames - 1

    @property
    def panel_width(self) -> int:
        """Columns of a panel in memory: whole tiles, so that each row is aligned for wide stores."""
        return self.key_tiles * self.tiles.block_n

    @property
    def kept_dtype(self) -> torch.dtype:
        """In which gradients wait for their factor: bf16 has the range for it, fp16 has not."""
        return torch.bfloat16 if self.query.dtype == torch.bfloat16 else torch.float32

    @property
    def flow_bytes(self) -> int:
        return 4 * 2 * self.frames * self.tokens

    @property
    def statistics_bytes_per_row(self) -> int:
        return 4 * 4 * self.segments

    @property
    def panel_bytes_per_row(self) -> int:
        return self.query.element_size() * self.panel_width

    @property
    def block_shape(self) -> dict[str, int]:
        """What a kernel of products is compiled for."""
        tiles = self.tiles
        return {
            "CHANNELS": self.channels,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_K": tiles.block_k,
            "GROUP_M": tiles.group_m,
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
        }

    def query_tiles(self, rows: int) -> int:
        return triton.cdiv(rows, self.tiles.block_m)

    def panel_rows(self, bytes_per_row: int, budget: int) -> int:
        """Rows of a panel: whole tiles, one at least, as few and as equal panels as the budget allows."""
        tiles = self.query_tiles(self.tokens)
        at_most = max(1, budget // (bytes_per_row * self.tiles.block_m))
        return triton.cdiv(tiles, triton.cdiv(tiles, at_most)) * self.tiles.block_m

    def gradient_panel_rows(self, bytes_per_row: int, budget: int) -> int:
        """The same where the keys' gradient is summed over panels: in float32, and that is memory too."""
        if (one_panel := self.panel_rows(bytes_per_row, budget)) >= self.tokens:
            return one_panel
        sums = 0 if self.kept_dtype == torch.float32 else 4 * self.tokens * self.channels
        return self.panel_rows(bytes_per_row, budget - sums)

    def sum_dtype(self, panel_rows: int) -> torch.dtype:
        """In which the keys' gradient is formed: one panel needs no sum."""
        return self.kept_dtype if panel_rows >= self.tokens else torch.float32

    def panels(self, panel_rows: int) -> Iterator[Panel]:
        for first in range(0, self.tokens, panel_rows):
            yield Panel(first, min(panel_rows, self.tokens - first))

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.query.device)


def _side_by_side(tokens: Tensor) -> Tensor:
    """[S, heads, head_dim] as [S, channels] with unit steps; a copy only where memory lies otherwise."""
    flat = tokens.reshape(tokens.shape[0], -1)
    return flat if flat.stride(1) == 1 else flat.contiguous()
