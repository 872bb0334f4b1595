"""Work and memory of the real 5B size, on fake tensors: exact, with no clock and no weights."""

import pytest
import torch

from ditflow.backbone.fake import fake_backbone, fake_inputs, fake_tensors
from ditflow.backbone.runner import Until
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.host import keep_on_host
from ditflow.memory.plain import PlainRunner
from ditflow.memory.tracker import Tracker
from ditflow.settings import Settings

TERA = 10**12
MIB = 1 << 20


@pytest.fixture(scope="module")
def guided():
    """5B at 24 frames, 480x720."""
    settings = Settings(model="5b")
    with fake_tensors():
        backbone = fake_backbone(settings)
        yield settings, backbone, fake_inputs(settings, backbone)


def pull(_, read):
    """Stands for a loss that reads queries and keys; its own work is not what these gates are about."""
    return read.query.float().mean() + read.key.float().mean()


def work(function, *present):
    with Tracker(present) as found:
        function()
    return found


def test_tracker_counts_each_storage_once():
    def graph():
        a = torch.empty(MIB, dtype=torch.uint8)
        b = a[: MIB // 2].view(-1)  # no storage of its own
        c = torch.cat([a, b])
        del a, b
        d = c.clone()
        del c
        return d + 1

    sizes = {"a": 1, "c": 1.5, "d": 1.5, "result": 1.5}
    assert work(graph).peak_bytes == max(sizes["a"] + sizes["c"], sizes["c"] + sizes["d"]) * MIB


def test_tracker_knows_what_is_kept_for_the_reverse():
    def graph():
        x = torch.ones(MIB // 4, requires_grad=True)
        y = x.exp()  # kept: its gradient needs it
        z = (y + 1).sum()
        return torch.autograd.grad(z, x)

    # x and y, and beside them y + 1 on the way, the gradient of x on the way back (that of y has no storage)
    assert work(graph).peak_bytes == pytest.approx(3 * MIB, abs=64)


def test_tracker_leaves_out_host_memory():
    present = torch.empty(3 * MIB, dtype=torch.uint8)
    assert work(lambda: present.clone(), present).peak_bytes == 6 * MIB
    keep_on_host(present)
    assert work(lambda: present.clone(), present).peak_bytes == 3 * MIB


def test_attention_is_counted():
    query = torch.empty(1, 3, 50, 16, requires_grad=True)
    with fake_tensors():
        query = torch.empty(1, 3, 50, 16, requires_grad=True)
        forward = 4 * 3 * 50 * 50 * 16

        def attend():
            return torch.nn.functional.scaled_dot_product_attention(query, query, query)

        assert work(attend).flops == forward
        assert work(lambda: torch.autograd.grad(attend().sum(), query)).flops == int(3.5 * forward)


@pytest.mark.parametrize("kind, most", [(PlainRunner, 138), (BlockwiseRunner, 180)])
def test_work_of_an_optimisation_step(guided, kind, most):
    """The released code: 235 TFLOP. Nothing recomputed; all but the feed-forward's last product."""
    settings, backbone, inputs = guided
    until = Until("query_key", settings.guidance_blocks)
    found = work(lambda: kind(backbone).gradient(pull, "latents", inputs, {}, until, 1.0))
    assert 0.95 * most * TERA < found.flops <= most * TERA
    assert all(parameter.grad is None for parameter in backbone.transformer.parameters())


def test_work_of_the_other_passes(guided):
    """The released code runs all 42 blocks in each of them: 115 TFLOP."""
    settings, backbone, inputs = guided
    runner = PlainRunner(backbone)
    reference = work(lambda: runner.features(inputs, {}, Until("query_key", settings.guidance_blocks)))
    assert 54 * TERA < reference.flops <= 57 * TERA
    injection = work(lambda: runner.features(inputs, {}, Until("key_value", settings.injection_blocks)))
    assert injection.flops <= 0.4 * TERA
    assert 113 * TERA < work(lambda: runner.forward([inputs], {})).flops <= 115 * TERA


def test_nothing_lives_between_blocks_but_the_boundaries(guided):
    """What the block-wise reverse holds grows, block by block, by what enters each of them."""
    _, backbone, inputs = guided
    runner = BlockwiseRunner(backbone)

    def peak(block):
        found = work(
            lambda: runner.gradient(pull, "latents", inputs, {}, Until("query_key", (block,)), 1.0),
            *backbone.transformer.parameters(),
        )
        return found.peak_bytes

    tokens = 226 + 6 * 1350
    boundary = tokens * 3072 * 2
    assert peak(9) - peak(5) == pytest.approx(4 * boundary, rel=0.01)
