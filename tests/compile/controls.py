"""Two matrix products that no operation uses, to build kernels that the checks must refuse."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.gates.resources import Case, Pointer

SIZE = 4096


@triton.jit
def pointer_product_kernel(
    left_ptr,  # [size, size]
    right_ptr,  # [size, size], transposed
    out_ptr,  # [size, size]
    size,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, size, BLOCK_K):
        left = tl.load(left_ptr + rows[:, None] * size + start + inner[None, :])
        right = tl.load(right_ptr + columns[:, None] * size + start + inner[None, :])
        sums = tl.dot(left, right.T, sums)
    tl.store(out_ptr + rows[:, None] * size + columns[None, :], sums.to(out_ptr.dtype.element_ty))


@triton.jit
def descriptor_product_kernel(
    left,  # descriptors made by the launcher
    right,
    out,
    size,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, size, BLOCK_K):
        sums = tl.dot(left.load([row, start]), right.load([column, start]).T, sums)
    out.store([row, column], sums.to(tl.bfloat16))


def pointer_product(block_m, block_n, block_k, num_stages) -> Case:
    def call():
        _launch(pointer_product_kernel, _matrix, block_m, block_n, block_k, num_stages)

    return Case("control", call)


def descriptor_product(block_m, block_n, block_k, num_stages) -> Case:
    def described(*block):
        return TensorDescriptor(_matrix(), [SIZE, SIZE], [SIZE, 1], list(block))

    def call():
        _launch(descriptor_product_kernel, described, block_m, block_n, block_k, num_stages)

    return Case("control", call)


def _matrix(*block) -> Pointer:
    return Pointer(torch.bfloat16, 0)


def _launch(kernel, operand, block_m, block_n, block_k, num_stages) -> None:
    operands = operand(block_m, block_k), operand(block_n, block_k), operand(block_m, block_n)
    kernel[(SIZE // block_m, SIZE // block_n)](
        *operands, SIZE, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_stages=num_stages
    )
