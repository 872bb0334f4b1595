"""Decoded values to pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ditflow.errors import LARGER_RANGE, NotFinite


def to_pixels(values: Tensor) -> Tensor:
    """Decoded values from -1 to 1, of any shape, to uint8.

    Raises NotFinite for NaN or infinity, which uint8 would show as black or white.
    """
    values = values.float()
    if not isinstance(values, FakeTensor) and not values.isfinite().all():  # planning has no values
        raise NotFinite(
            "the decoded video contains NaN or infinity, so no video is written; the VAE's files may be "
            f"damaged, else {LARGER_RANGE}"
        )
    return ((values + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
