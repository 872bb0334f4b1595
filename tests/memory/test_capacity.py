"""How much memory a run may plan with, and that it cannot allocate more."""

import psutil
import pytest
import torch

from ditflow.memory import capacity
from ditflow.memory.presets import GIB, USABLE, budget

CPU = torch.device("cpu")


def test_on_a_cpu_a_given_size_counts_and_auto_is_what_is_free(monkeypatch):
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 10 * GIB)
    assert capacity.usable_bytes("auto", CPU) == int(USABLE * 10 * GIB)
    assert capacity.usable_bytes("8", CPU) == capacity.usable_bytes("8gb", CPU) == budget(8)
    assert capacity.usable_bytes("80gb", CPU) == budget(80)
    assert capacity.usable_bytes("0.1", CPU) == 0


def test_on_a_gpu_never_more_than_is_free(monkeypatch):
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 10 * GIB)
    gpu = torch.device("cuda")
    assert capacity.usable_bytes("8", gpu) == budget(8)
    assert capacity.usable_bytes("24gb", gpu) == int(USABLE * 10 * GIB - capacity.LOADED_LATER)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_allocations_beyond_the_cap_fail():
    gpu = torch.device("cuda", 0)
    with capacity.capped("2", gpu):
        torch.empty(GIB, dtype=torch.uint8, device=gpu)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2 * GIB, dtype=torch.uint8, device=gpu)
    torch.empty(2 * GIB, dtype=torch.uint8, device=gpu)


@pytest.mark.parametrize(
    "error, means",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error, means):
    assert capacity.ran_out(error) == means


def test_memory_of_many_small_tensors_is_given_back():
    process, pieces = psutil.Process(), [torch.ones(16_000) for _ in range(4_000)]  # 64 kB each: on the heap
    last = torch.ones(16_000)  # at the heap's end, so that nothing is returned automatically
    del pieces
    kept = process.memory_info().rss
    capacity.give_back(CPU)
    assert process.memory_info().rss < kept - 200e6
    assert last.sum() == 16_000
