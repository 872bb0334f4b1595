"""The released code's motion flow, losses and gradients, reproduced by the Triton kernels."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ditflow_kernels import motion_flow, motion_flow_loss

OWN = Path(__file__).parents[1] / "golden"
ALL = Path(os.environ.get("DITFLOW_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


def discovered():
    """Every golden file: those in the repository and, if present, the whole set."""
    found = [(f"own/{path.stem}", path) for path in sorted((OWN / "amf").glob("*.safetensors"))]
    found += [(path.stem, path) for path in sorted((ALL / "amf").glob("*.safetensors"))]
    return [pytest.param(path, id=name) for name, path in found]


def read(path):
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12)).item()


def test_the_repository_has_golden_files():
    assert len(list((OWN / "amf").glob("*.safetensors"))) >= 2


@pytest.mark.parametrize("path", discovered())
def test_amf(path):
    tensors, shape = read(path)
    grid = frames, height, width = (shape["frames"], shape["height"], shape["width"])
    given = grid, shape["temperature"]

    def pairs(flow):
        return flow.view(frames, frames, height * width, 2)

    def tokens(name):
        return tensors[name].transpose(0, 1).contiguous()

    query, key = tokens("query").requires_grad_(), tokens("key").requires_grad_()
    hard = motion_flow(query, key, *given, hard=True, backend="triton")
    assert torch.equal(hard, pairs(tensors["hard_flow"]))
    soft = motion_flow(query, key, *given, backend="triton")
    assert (soft - pairs(tensors["soft_flow"])).abs().max() < 2e-6 * max(grid)  # of the largest coordinate

    for name, rows in (("masked", "moving"), ("unmasked", "all")):
        reference = pairs(tensors["reference_flow"])
        loss = motion_flow_loss(query, key, reference, *given, rows=rows, backend="triton")
        assert relative(loss, tensors[f"loss_{name}"]) < 1e-5
        gradients = torch.autograd.grad(loss, (query, key))
        assert relative(gradients[0], tokens(f"grad_query_{name}")) < 1e-5
        assert relative(gradients[1], tokens(f"grad_key_{name}")) < 1e-5
