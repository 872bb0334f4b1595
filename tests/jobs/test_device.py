"""Which device a run computes on, and which it refuses."""

from dataclasses import replace

import pytest
import torch

from ditflow.errors import DitflowError
from ditflow.jobs.device import choose_device
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
