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
from ditflow.memory.streamed import Streamed
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


@pytest.fixture
def streamed_backbone(monkeypatch):
    """Blocks that fail when they compute with weights that are not on the device."""
    backbone = CogVideoX(tiny_transformer(layers=DEPTH))

    def watch(weights):
        pool = {buffer.untyped_storage().data_ptr() for buffer in weights.device_buffers()}
        for name in ("prepare", "add_attention", "feed_forward", "feed_forward_reverse"):
            original = getattr(backbone, name)

            def checked(index, *rest, original=original):
                found = {
                    tensor.untyped_storage().data_ptr() for tensor in backbone.blocks[index].parameters()
                }
                assert found <= pool, f"block {index} computes with weights in host memory"
                return original(index, *rest)

            monkeypatch.setattr(backbone, name, checked)

    return backbone, watch


@pytest.mark.parametrize("resident", [0, 2, DEPTH])
def test_streamed_weights_change_nothing_but_their_place(streamed_backbone, resident):
    backbone, watch = streamed_backbone
    inputs, until = random_inputs(backbone, 3, 8, 12), Until("query_key", (3,))
    plain = BlockwiseRunner(backbone)
    expected = plain.gradient(square, "latents", inputs, {}, until, 1.0), plain.forward([inputs], {})[0]

    weights = Streamed(backbone.blocks, torch.device("cpu"), resident)
    watch(weights)
    runner = BlockwiseRunner(backbone, weights)
    for _ in range(2):
        found = runner.gradient(square, "latents", inputs, {}, until, 1.0), runner.forward([inputs], {})[0]
        assert torch.equal(found[0][1], expected[0][1])
        assert torch.equal(found[1], expected[1])


def test_weights_in_host_memory_are_noticed(streamed_backbone):
    """The watch above can fail: a block that nobody brought."""
    backbone, watch = streamed_backbone
    watch(Streamed(backbone.blocks, torch.device("cpu"), 0))
    with pytest.raises(AssertionError, match="block 0 computes with weights in host memory"):
        PlainRunner(backbone).forward([random_inputs(backbone, 3, 8, 12)], {})


def test_turning_round_copies_nothing_twice():
    backbone = CogVideoX(tiny_transformer(layers=DEPTH))
    weights = Streamed(backbone.blocks, torch.device("cpu"), 1)
    block = weights.blocks[0].bytes

    def copies(order):
        before = weights.copied_bytes
        assert list(weights.walk(order)) == list(order)
        return (weights.copied_bytes - before) / block

    assert copies(range(DEPTH)) == DEPTH - 1  # all but the one that stays
    assert copies([4, 3, 2, 1, 0]) == DEPTH - 3  # and the two that the ring still has
    assert copies([0, 1]) == 0
    assert copies([0]) == 0


def test_early_end_of_a_walk_leaves_the_ring_usable():
    backbone = CogVideoX(tiny_transformer(layers=DEPTH))
    inputs = random_inputs(backbone, 3, 8, 12)
    expected = PlainRunner(backbone).forward([inputs], {})[0]
    weights = Streamed(backbone.blocks, torch.device("cpu"), 0)
    for _ in weights.walk(range(DEPTH)):
        break
    assert torch.equal(PlainRunner(backbone, weights).forward([inputs], {})[0], expected)
