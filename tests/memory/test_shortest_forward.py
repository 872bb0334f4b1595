"""A forward runs no further than needed, counted in blocks and FLOPs; no weight gets a gradient."""

import pytest
from tiny_models import DEPTH, BlockCalls, random_inputs, tiny_backbone
from torch.utils.flop_counter import FlopCounterMode

from ditflow.memory.plain import PlainRunner
from ditflow.models.protocols import Capture


@pytest.fixture
def runner():
    return PlainRunner(tiny_backbone(layers=DEPTH))


@pytest.mark.parametrize(
    "capture, prepared, finished",
    [
        (Capture("query_key", (2,)), [0, 1, 2], [0, 1]),
        (Capture("query_key", (3, 1)), [0, 1, 2, 3], [0, 1, 2]),
        (Capture("key_value", (1,)), [0], [0]),
        (Capture("output", (2,)), [0, 1, 2], [0, 1, 2]),
    ],
    ids=["flow", "flow-two-blocks", "injection", "moft"],
)
def test_forward_stops_once_the_loss_has_what_it_needs(runner, capture, prepared, finished, monkeypatch):
    counts = BlockCalls(runner.transformer, monkeypatch)
    inputs = random_inputs(runner.transformer, 3, 8, 12)
    assert set(runner.features(inputs, {}, capture)) == set(capture.blocks)
    assert (counts.prepared, counts.finished, counts.heads) == (prepared, finished, 0)

    def loss(_, read):
        tensors = read if isinstance(read, tuple) else (read,)
        return sum(tensor.float().square().sum() for tensor in tensors)

    counts.prepared.clear(), counts.finished.clear()
    runner.gradient(loss, "latents", inputs, {}, capture, 1.0)
    assert (counts.prepared, counts.finished, counts.heads) == (prepared, finished, 0)


def test_capturing_queries_and_keys_leaves_out_attention_and_feed_forward(runner):
    """Up to block 2's queries and keys: two blocks, and only the part of the third before its attention."""
    inputs = random_inputs(runner.transformer, 3, 8, 12)

    def flops(capture):
        with FlopCounterMode(display=False) as counter:
            runner.features(inputs, {}, capture)
        return counter.get_total_flops()

    channels, time_channels, tokens = 32, 16, 10 + 3 * 4 * 6
    projections = 3 * 2 * tokens * channels**2
    modulation = 2 * time_channels * 6 * channels
    assert flops(Capture("query_key", (2,))) - flops(Capture("output", (1,))) == projections + modulation


def test_no_weight_has_a_gradient(backbone):
    inputs = random_inputs(backbone, 3, 8, 12)
    capture = Capture("output", (1,))
    for wrt in ("latents", "embedding"):
        _, gradient = PlainRunner(backbone).gradient(
            lambda _, read: read.square().mean(), wrt, inputs, {}, capture, 1.0
        )
        assert gradient.shape == getattr(inputs, wrt).shape
        assert gradient.abs().max() > 0
    parameters = list(backbone.network.parameters())
    assert parameters
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in parameters)
