"""Which device a run computes on, and which it refuses."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ditflow.errors import DitflowError
from ditflow.jobs import device
from ditflow.jobs.device import choose_device, is_on_cpu
from ditflow.settings import Settings


def test_large_models_need_a_gpu(monkeypatch, small_folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    hub_id = replace(Settings(model="5b"), model="someone/else")
    for settings in (Settings(model="5b"), Settings(model="2b"), hub_id):
        with pytest.raises(DitflowError, match="needs a CUDA GPU.*--model small"):
            choose_device(settings)
        assert choose_device(replace(settings, device="cpu")) == torch.device("cpu")
    assert choose_device(Settings(model=str(small_folder), device="auto")) == torch.device("cpu")
    with pytest.raises(DitflowError, match="accepted: auto, cpu"):
        choose_device(Settings(device="toaster"))
    with pytest.raises(DitflowError, match="accepted: auto, cpu"):
        choose_device(Settings(device="meta"))


def test_absent_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DitflowError, match="0 CUDA GPUs"):
        choose_device(Settings(device="cuda:1"))


@pytest.mark.parametrize(
    "code, count, found",
    [(0, 2, True), (0, 0, False), (100, 0, False)],
    ids=["gpus", "hidden", "no-device"],  # 100: CUDA_ERROR_NO_DEVICE
)
def test_the_driver_is_asked(monkeypatch, code, count, found):
    def get_count(pointer):
        pointer._obj.value = count
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: code, cuDeviceGetCount=get_count)
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: driver)
    assert device._driver_finds_gpu() == found


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(device.ctypes, "CDLL", absent)
    assert not device._driver_finds_gpu()


@pytest.mark.parametrize("gpus", [0, 1])
def test_which_runs_are_planned_for_the_cpu(monkeypatch, small_folder, gpus):
    """A large model waits for a GPU, unless it is told to use the CPU."""
    monkeypatch.setattr(device, "gpu_count", lambda: gpus)
    small = Settings(model=str(small_folder), device="auto")
    assert is_on_cpu(small) == (not gpus)
    assert is_on_cpu(replace(small, device="cpu")) and not is_on_cpu(replace(small, device="cuda"))
    assert not is_on_cpu(Settings(model="5b")) and is_on_cpu(Settings(model="5b", device="cpu"))
