"""No forward is longer than needed, and no weight ever has a gradient: counted, not timed."""

import pytest
import torch
from conftest import tiny_transformer
from test_backbone import random_inputs
from torch.utils.flop_counter import FlopCounterMode

from ditflow.guidance.injection import Injection
from ditflow.memory.plain import PlainRunner
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.protocols import Until
from ditflow.sampling.loop import Scale, Step, denoise

DEPTH = 5


class Counts:
    """How often each half of each block ran."""

    def __init__(self, backbone, monkeypatch):
        self.prepared, self.finished, self.heads = [], [], 0
        for name, calls in (("prepare", self.prepared), ("finish", self.finished)):
            original = getattr(backbone, name)

            def counted(index, *rest, original=original, calls=calls):
                calls.append(index)
                return original(index, *rest)

            monkeypatch.setattr(backbone, name, counted)
        head = backbone.head

        def counted_head(*given):
            self.heads += 1
            return head(*given)

        monkeypatch.setattr(backbone, "head", counted_head)


@pytest.fixture
def runner():
    return PlainRunner(CogVideoX(tiny_transformer(layers=DEPTH)))


@pytest.mark.parametrize(
    "until, prepared, finished",
    [
        (Until("query_key", (2,)), [0, 1, 2], [0, 1]),
        (Until("query_key", (3, 1)), [0, 1, 2, 3], [0, 1, 2]),
        (Until("key_value", (1,)), [0], [0]),
        (Until("output", (2,)), [0, 1, 2], [0, 1, 2]),
    ],
    ids=["flow", "flow-two-blocks", "injection", "moft"],
)
def test_forward_ends_where_the_loss_has_what_it_needs(runner, until, prepared, finished, monkeypatch):
    counts = Counts(runner.backbone, monkeypatch)
    inputs = random_inputs(runner.backbone, 3, 8, 12)
    assert set(runner.features(inputs, {}, until)) == set(until.blocks)
    assert (counts.prepared, counts.finished, counts.heads) == (prepared, finished, 0)

    def loss(_, read):
        tensors = read if isinstance(read, tuple) else (read,)
        return sum(tensor.float().square().sum() for tensor in tensors)

    counts.prepared.clear(), counts.finished.clear()
    runner.gradient(loss, "latents", inputs, {}, until, 1.0)
    assert (counts.prepared, counts.finished, counts.heads) == (prepared, finished, 0)


def test_tapped_forward_leaves_out_attention_and_feed_forward(runner):
    """To block 2's queries and keys: two blocks, and of the third only what stands before attention."""
    inputs = random_inputs(runner.backbone, 3, 8, 12)

    def flops(until):
        with FlopCounterMode(display=False) as counter:
            runner.features(inputs, {}, until)
        return counter.get_total_flops()

    channels, time_channels, tokens = 32, 16, 10 + 3 * 4 * 6
    projections = 3 * 2 * tokens * channels**2
    modulation = 2 * time_channels * 6 * channels
    assert flops(Until("query_key", (2,))) - flops(Until("output", (1,))) == projections + modulation


def test_no_injection_runs_no_injection_pass(runner, monkeypatch):
    from test_golden import SCHEDULER

    from ditflow.models.cogvideox.schedule import Schedule
    from ditflow.models.cogvideox.text import Texts

    inputs = random_inputs(runner.backbone, 3, 8, 12)
    texts = Texts(*[inputs.prompt] * 3)

    def blocks_run(injection):
        counts = Counts(runner.backbone, monkeypatch)
        schedule = Schedule("ddim", SCHEDULER, 4, torch.device("cpu"), torch.Generator().manual_seed(0))
        denoise(
            runner, schedule, Step(-1, inputs.latents, inputs.embedding, []), inputs.embedding, texts,
            Scale(3.0, False), 2, None, injection, None, lambda step: None,
        )  # fmt: skip
        monkeypatch.undo()
        return len(counts.prepared)

    injection = Injection((1,), torch.randn_like(inputs.latents), inputs.latents, inputs.embedding)
    forwards = 4 * 2 * DEPTH
    assert blocks_run(None) == forwards
    assert blocks_run(injection) == forwards + 2 * 1  # block 0; of block 1 only keys and values


def test_no_weight_has_a_gradient(backbone):
    inputs = random_inputs(backbone, 3, 8, 12)
    until = Until("output", (1,))
    for wrt in ("latents", "embedding"):
        _, gradient = PlainRunner(backbone).gradient(
            lambda _, read: read.square().mean(), wrt, inputs, {}, until, 1.0
        )
        assert gradient.shape == getattr(inputs, wrt).shape
        assert gradient.abs().max() > 0
    parameters = list(backbone.transformer.parameters())
    assert parameters
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in parameters)
