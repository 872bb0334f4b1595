"""One motion flow problem as the chunked backend sees it: the heads side by side, the frames apart."""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """What every pass over the logits reads."""

    query: Tensor  # [frames, cells, channels]
    key: Tensor  # [frames, cells, channels]
    height: int
    width: int
    scale: float  # temperature / (heads * sqrt(head_dim))

    @classmethod
    def of(
        cls,
        query: Tensor,  # [S, heads, head_dim]
        key: Tensor,  # [S, heads, head_dim]
        grid: tuple[int, int, int],
        temperature: float,
    ) -> "Problem":
        _, heads, head_dim = query.shape
        frames, height, width = grid
        if query.dtype == torch.float16 and query.device.type == "cpu":
            query, key = query.float(), key.float()  # the CPU library has no fast fp16 product
        query, key = (tokens.reshape(frames, height * width, heads * head_dim) for tokens in (query, key))
        return cls(query, key, height, width, temperature / (heads * sqrt(head_dim)))

    @property
    def columns(self) -> Tensor:  # [width] float32
        return torch.arange(self.width, dtype=torch.float32, device=self.query.device)

    @property
    def lines(self) -> Tensor:  # [height] float32
        return torch.arange(self.height, dtype=torch.float32, device=self.query.device)

    @property
    def cells(self) -> Tensor:  # [cells, 2] float32, (x, y)
        y, x = torch.meshgrid(self.lines, self.columns, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=-1)

    @property
    def kept_dtype(self) -> torch.dtype:
        """In which gradients wait for their factor: bf16 has the range for it, fp16 has not."""
        return torch.bfloat16 if self.query.dtype == torch.bfloat16 else torch.float32

    @property
    def forward_bytes_per_row(self) -> int:
        """Temporary bytes, at most, of one query row against all key frames: logits and their sums."""
        frames, cells, _ = self.query.shape
        return frames * ((4 + self._rounded_bytes) * cells + 12 * (self.height + self.width + 8))

    @property
    def gradient_bytes_per_row(self) -> int:
        """The same with gradients: the factor of a logit's gradient, a row of the query's and a summand."""
        frames, cells, channels = self.query.shape
        to_logits = frames * (8 * cells + 12 * (self.height + self.width + 8))
        return to_logits + (8 + self._rounded_bytes) * channels

    @property
    def key_gradient_bytes(self) -> int:
        """Temporary bytes of one frame's summand in the gradient to the keys."""
        _, cells, channels = self.query.shape
        return (4 + self._rounded_bytes) * cells * channels

    @property
    def _rounded_bytes(self) -> int:
        """Bytes of a copy in the dtype of the products, where that is not float32."""
        return self.query.element_size() if self.query.dtype != torch.float32 else 0


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` as a new float32 tensor."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()  # the CPU library rounds a bf16 product to bf16
