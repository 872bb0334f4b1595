"""Whole runs with another attention kernel in forwards without gradient."""

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import latents

from ditflow import transfer
from ditflow.models import attention
from ditflow.models.attention import KERNELS, Kernel
from ditflow.settings import read_settings


@pytest.fixture
def sage(monkeypatch):
    """A stand-in for SageAttention: no gradient, any device, counts its calls."""

    class Sage:
        calls, error = 0, 0.0

        def __call__(self, query, key, value):
            assert not torch.is_grad_enabled()
            self.calls += 1
            return attention.sdpa(query, key, value) * (1 + self.error)

    stand_in = Sage()
    monkeypatch.setitem(KERNELS, "sage", Kernel(stand_in, architecture=None, gradient=False))
    return stand_in


@pytest.mark.parametrize("memory", ["80gb", "16gb", "4gb"])
def test_a_run_that_optimises_takes_sage_for_its_forwards(settings, sage, memory):
    settings = replace(settings, memory=memory)
    exact = transfer(settings)
    assert not sage.calls
    run = transfer(replace(settings, attention_forward="sage"))
    assert sage.calls
    assert read_settings(run.folder / "settings.yaml").attention_forward == "sage"
    assert torch.equal(latents(run), latents(exact))
    sage.error = 0.1
    assert not torch.equal(latents(transfer(replace(settings, attention_forward="sage"))), latents(exact))


def test_auto_is_recorded_as_what_it_chose(settings):
    run = transfer(replace(settings, attention_forward="auto"))
    assert read_settings(run.folder / "settings.yaml").attention_forward == "sdpa"
