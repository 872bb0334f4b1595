"""Every kernel, compiled for every architecture of the tuning table; no GPU is needed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import triton
from checks import check, check_async_copies, check_matrix_unit, check_shared_memory, check_spills
from controls import descriptor_product, pointer_product

from bench.gates import table
from bench.gates.compiled import compile_all, metrics
from bench.gates.launches import cases
from bench.gates.resources import SHARED_LIMIT, recorded, resources
from bench.gates.resources import compiled as compiled_kernel
from ditflow_kernels.tuning import TUNING

NAMES = [case.name for case in cases()]
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PINNED = f"triton=={triton.__version__}" in CONSTRAINTS.read_text(encoding="utf-8").split()


@pytest.fixture(scope="session")
def compiled():
    return compile_all()


@pytest.mark.parametrize("architecture", TUNING)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_pass_the_checks(name, architecture, compiled):
    assert compiled[name, architecture]
    for kernel in compiled[name, architecture]:
        check(kernel)


@pytest.mark.parametrize("architecture", TUNING)
@pytest.mark.parametrize("name", NAMES)
def test_one_binary_serves_every_size(name, architecture, compiled):
    """24 and 49 frames, and 256 x 384, whose numbers of cells and queries are multiples of 16."""
    kernels = [kernel.kernel for kernel in compiled[name, architecture]]
    assert len(kernels) == len(set(kernels)), f"compiled more than once: {kernels}"


@pytest.mark.parametrize("case", cases(), ids=NAMES)
def test_the_default_for_fusing_products_and_sums_is_not_used(case):
    """It depends on an environment variable, and on the version of Triton."""
    launches = recorded(case, 80)
    assert launches and all(launch.options["enable_fp_fusion"] is True for launch in launches)


@pytest.mark.skipif(not PINNED, reason="the table is that of the Triton of constraints.txt")
def test_resources_are_those_of_the_table(compiled):
    """A change here is not always a mistake: look at it, then accept it (see bench/README.md)."""
    found = metrics(kernel for kernels in compiled.values() for kernel in kernels)
    report = table.report(table.differences(table.rows_of("compile", table.read()), found))
    assert not report, report


def test_changed_resources_are_seen():
    """One more register; and a second specialisation, which the first would hide."""
    (kernel,) = resources(pointer_product(64, 128, 32, 3), 80)
    name = "compile/control/pointer_product_kernel/sm_80"
    rows = table.refreshed([], metrics([kernel]), "made")
    found = metrics([replace(kernel, registers=kernel.registers + 1)])
    (difference,) = table.differences(rows, found)
    assert str(difference).startswith(f"{name} registers: {kernel.registers} -> {kernel.registers + 1}, ")
    with pytest.raises(ValueError, match="two specialisations"):
        metrics([kernel, kernel])


def test_every_architecture_has_its_limits():
    assert set(TUNING) == set(SHARED_LIMIT)


@pytest.mark.parametrize("architecture", TUNING)
def test_a_good_product_passes(architecture):
    (kernel,) = resources(pointer_product(64, 128, 32, 3), architecture)
    for each in (check_shared_memory, check_spills, check_async_copies, check_matrix_unit):
        each(kernel)


def test_too_much_shared_memory_is_seen():
    too_large = pointer_product(128, 128, 64, 5)
    for architecture, fits in {86: False, 90: True}.items():
        (kernel,) = resources(too_large, architecture)
        if fits:
            check_shared_memory(kernel)
        else:
            with pytest.raises(AssertionError, match="bytes of shared memory"):
                check_shared_memory(kernel)


def test_spilled_registers_are_seen():
    (kernel,) = resources(pointer_product(128, 256, 32, 2), 80)
    with pytest.raises(AssertionError, match="spilled"):
        check_spills(kernel)


def test_lost_asynchronous_copies_are_seen():
    """Tensor descriptors made by the launcher become plain loads before sm_90."""
    (kernel,) = resources(descriptor_product(64, 128, 32, 3), 86)
    with pytest.raises(AssertionError, match="no asynchronous copies"):
        check_async_copies(kernel)


def test_another_matrix_unit_is_seen():
    (kernel,) = resources(pointer_product(64, 128, 32, 3), 90)
    with pytest.raises(AssertionError, match="uses"):
        check_matrix_unit(kernel.__class__(**{**vars(kernel), "architecture": 100}))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("int8-linear")])
@pytest.mark.parametrize(
    "architecture, instruction",
    {
        80: "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
        89: "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
        90: "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8",
        120: "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    }.items(),
)
def test_products_of_bytes_use_the_instruction_for_bytes(name, architecture, instruction):
    (case,) = (case for case in cases() if case.name == name)
    launch = recorded(case, architecture)[-1]
    ptx = compiled_kernel(launch, architecture).asm["ptx"]
    assert set(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)\S+", ptx)) == {instruction}
