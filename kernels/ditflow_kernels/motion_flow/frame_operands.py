"""Queries and keys as the chunked backend multiplies them: heads concatenated, frames apart."""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor


class FrameOperands(NamedTuple):
    """The operands of `Q K^T`, its scale, and the bytes that a pass over it takes."""

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
    ) -> "FrameOperands":
        _, heads, head_dim = query.shape
        frames, height, width = grid
        if query.dtype == torch.float16 and query.device.type == "cpu":
            query, key = query.float(), key.float()  # the CPU library has no fast fp16 product
        query, key = (tokens.reshape(frames, height * width, heads * head_dim) for tokens in (query, key))
        return cls(query, key, height, width, temperature / (heads * sqrt(head_dim)))

    @property
    def x(self) -> Tensor:  # [width] float32
        return torch.arange(self.width, dtype=torch.float32, device=self.query.device)

    @property
    def y(self) -> Tensor:  # [height] float32
        return torch.arange(self.height, dtype=torch.float32, device=self.query.device)

    @property
    def coordinates(self) -> Tensor:  # [cells, 2] float32, (x, y)
        y, x = torch.meshgrid(self.y, self.x, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=-1)

    def mean_key(self) -> Tensor | None:  # [channels] float32
        """The mean over all tokens; None for float32, whose logits' gradient is not rounded."""
        if self.key.dtype == torch.float32:
            return None
        return self.key.flatten(0, 1).mean(dim=0, dtype=torch.float32)

    @property
    def unscaled_dtype(self) -> torch.dtype:
        """Dtype of gradients before their factor: bf16 has enough range for them, fp16 does not."""
        return torch.bfloat16 if self.query.dtype == torch.bfloat16 else torch.float32

    @property
    def flow_bytes_per_query(self) -> int:
        """Most temporary bytes of one query against all key frames: logits and their sums."""
        frames, cells, _ = self.query.shape
        return frames * ((4 + self._rounded_bytes) * cells + 12 * (self.height + self.width + 8))

    @property
    def gradient_bytes_per_query(self) -> int:
        """The same with gradients: two maps of logits, the query's gradient and one summand of it."""
        frames, cells, channels = self.query.shape
        to_logits = frames * (8 * cells + 12 * (self.height + self.width + 8))
        return to_logits + (8 + self._rounded_bytes) * channels

    @property
    def key_gradient_bytes(self) -> int:
        """Temporary bytes of one frame's summand of the key gradient."""
        _, cells, channels = self.query.shape
        return (4 + self._rounded_bytes) * cells * channels

    @property
    def _rounded_bytes(self) -> int:
        """Bytes an element of a copy in the operands' dtype; 0 for float32, which needs no copy."""
        return self.query.element_size() if self.query.dtype != torch.float32 else 0


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` as a new float32 tensor."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()  # the CPU library rounds a bf16 product to bf16
