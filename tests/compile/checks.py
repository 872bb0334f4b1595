"""Checks of every compiled kernel."""

from bench.gates.resources import SHARED_LIMIT, Resources

# kernels with tl.dot; the others stream through memory or sum a little
PRODUCTS = {
    "motion_flow_forward_kernel",
    "motion_flow_hard_kernel",
    "motion_flow_backward_kernel",
    "int8_linear_product_kernel",
}
# read or write tensors as long as the inputs: 16 bytes per thread at a time
STREAMS = {
    "qk_norm_rope_forward_kernel",
    "qk_norm_rope_backward_kernel",
    "motion_flow_grad_logits_kernel",
    "int8_linear_round_kernel",
}
SMALL = {"motion_flow_combine_kernel", "motion_flow_hard_combine_kernel", "motion_flow_activity_kernel"}

MATRIX_UNIT = {80: "mma_sync", 86: "mma_sync", 89: "mma_sync", 90: "wgmma", 100: "tcgen05", 120: "mma_sync"}
# Triton has no product of bytes for tcgen05
INT8_MATRIX_UNIT = MATRIX_UNIT | {100: "mma_sync"}


def check_shared_memory(kernel: Resources) -> None:
    limit = SHARED_LIMIT[kernel.architecture]
    assert kernel.shared <= limit, f"{kernel.shared} bytes of shared memory, more than {limit}: {kernel}"


def check_spills(kernel: Resources) -> None:
    assert kernel.stack == 0, f"registers spilled to {kernel.stack} bytes of stack: {kernel}"


def check_loads(kernel: Resources) -> None:
    assert kernel.async_copies or kernel.wide_loads, f"no 16-byte loads: {kernel}"


def check_stores(kernel: Resources) -> None:
    assert kernel.wide_stores, f"no 16-byte stores: {kernel}"


def check_async_copies(kernel: Resources) -> None:
    assert kernel.async_copies, f"no asynchronous copies: {kernel}"


def check_matrix_unit(kernel: Resources) -> None:
    used = {name for name in ("mma_sync", "wgmma", "tcgen05") if getattr(kernel, name)}
    # products in full float32 have no matrix unit
    units = INT8_MATRIX_UNIT if kernel.kernel.startswith("int8_") else MATRIX_UNIT
    expected = set() if "float32" in kernel.case else {units[kernel.architecture]}
    assert used == expected, f"uses {used or 'no matrix unit'}, not {expected or 'none'}: {kernel}"


def check(kernel: Resources) -> None:
    """Run all checks for this kind of kernel."""
    check_shared_memory(kernel)
    check_spills(kernel)
    if kernel.kernel in PRODUCTS:
        check_matrix_unit(kernel)
        check_async_copies(kernel)
    elif kernel.kernel in STREAMS:
        check_loads(kernel)
        check_stores(kernel)
    else:
        assert kernel.kernel in SMALL, f"{kernel.kernel} is of no kind: add it to one in checks.py"
