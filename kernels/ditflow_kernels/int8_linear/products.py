"""Exact products of int8 matrices in plain PyTorch.

torch's own int8 product takes only some shapes, exists only on some devices, and is wrong on a CPU without
VNNI, where its sums of two products saturate at 16 bits. So it is tried once on the largest values.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

# cuBLAS: more than 16 rows, the other sizes multiples of 8
FEWEST_ROWS, MULTIPLE = 17, 8
# sums of so many products of two bytes are exact in float32
EXACT_SUM = 2**24 // (128 * 128)


def int8_product(left: Tensor, right: Tensor) -> Tensor:  # [m, k] int8, [k, n] int8 -> [m, n] int32
    """`left @ right`, exactly."""
    product = _library_product if _library_is_exact(left.device.type) else _float_product
    return product(left, right)


def _library_product(left: Tensor, right: Tensor) -> Tensor:
    (m, k), n = left.shape, right.shape[1]
    more_m, more_k, more_n = max(FEWEST_ROWS - m, 0), -k % MULTIPLE, -n % MULTIPLE
    if more_m or more_k:
        left = pad(left, (0, more_k, 0, more_m))
    if more_k or more_n:
        right = pad(right, (0, more_n, 0, more_k))
    return torch._int_mm(left, right)[:m, :n]


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    """In float32, few enough products at a time to be exact; bf16 and tf32, too, hold a byte."""
    result = torch.zeros(len(left), right.shape[1], dtype=torch.int32, device=left.device)
    for columns, rows in zip(left.split(EXACT_SUM, dim=1), right.split(EXACT_SUM), strict=True):
        result += (columns.float() @ rows.float()).int()
    return result


@cache
def _library_is_exact(device_type: str) -> bool:
    if device_type not in ("cpu", "cuda"):
        return False
    size = 64
    largest = torch.full((size, size), 127, dtype=torch.int8, device=device_type)
    return bool((torch._int_mm(largest, largest) == 127 * 127 * size).all())
