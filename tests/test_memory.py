"""Runners that save memory against the plain one: the same losses and gradients."""

import pytest
import torch
from conftest import tiny_transformer
from test_backbone import random_inputs

from ditflow.backbone import cogvideox
from ditflow.backbone.cogvideox import CogVideoX
from ditflow.backbone.runner import Grid, Until
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.settings import Settings

DEPTH = 5
READS = {
    "flow": Until("query_key", (3,)),
    "first-block": Until("query_key", (0,)),
    "two-blocks": Until("query_key", (1, 4)),
    "output": Until("output", (3,)),
    "two-outputs": Until("output", (0, 2)),
}


def square(_, read):
    tensors = read if isinstance(read, tuple) else (read,)
    return sum(tensor.float().square().mean() for tensor in tensors)


@pytest.mark.parametrize("wrt", ["latents", "embedding"])
@pytest.mark.parametrize("until", READS.values(), ids=READS.keys())
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "additive"])
def test_blockwise_equals_plain_autograd(rotary, until, wrt, monkeypatch):
    monkeypatch.setattr(cogvideox, "CHUNK", 20)  # several chunks, the last one ragged
    backbone = CogVideoX(tiny_transformer(rotary, layers=DEPTH))
    inputs = random_inputs(backbone, 3, 8, 12)
    injected = PlainRunner(backbone).features(random_inputs(backbone, 3, 8, 12), {}, Until("key_value", (2,)))
    expected = PlainRunner(backbone).gradient(square, wrt, inputs, injected, until, 8.0)
    found = BlockwiseRunner(backbone).gradient(square, wrt, inputs, injected, until, 8.0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    assert (found[1] - expected[1]).norm() <= 1e-6 * expected[1].norm()
    assert found[1].dtype == torch.float32


def test_one_chunk_is_bit_for_bit_plain_autograd():
    backbone = CogVideoX(tiny_transformer(layers=DEPTH))
    inputs, until = random_inputs(backbone, 3, 8, 12), Until("query_key", (3,))
    loss = FlowLoss(
        PlainRunner(backbone).features(inputs, {}, until), Grid(3, 4, 6), Settings(model="small", rows="all")
    )
    expected = PlainRunner(backbone).gradient(loss, "latents", inputs, {}, until, 1.0)
    found = BlockwiseRunner(backbone).gradient(loss, "latents", inputs, {}, until, 1.0)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
