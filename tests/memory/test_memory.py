"""Runners that save memory give the same losses and gradients as the plain one."""

import weakref
from dataclasses import replace

import pytest
import torch
from tiny_models import DEPTH, random_inputs, square, tiny_backbone
from torch.utils._python_dispatch import TorchDispatchMode

from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import flow_targets
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.streamed import Streamed
from ditflow.models.cogvideox import transformer as cogvideox
from ditflow.models.protocols import Capture, Grid
from ditflow.settings import Settings

CAPTURES = {
    "flow": Capture("query_key", (3,)),
    "first-block": Capture("query_key", (0,)),
    "two-blocks": Capture("query_key", (1, 4)),
    "output": Capture("output", (3,)),
    "two-outputs": Capture("output", (0, 2)),
}
POLICIES = {
    "inputs": {},
    "attention": {"keep": "attention"},
    "inputs-on-host": {"block_inputs": "host"},
    "attention-and-host": {"keep": "attention", "block_inputs": "host"},
}


@pytest.mark.parametrize("wrt", ["latents", "embedding"])
@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES.keys())
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "additive"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_blockwise_equals_plain_autograd(policy, rotary, capture, wrt, monkeypatch):
    monkeypatch.setattr(cogvideox, "CHUNK", 20)  # several chunks, the last one ragged
    backbone = tiny_backbone(rotary, layers=DEPTH)
    inputs = random_inputs(backbone, 3, 8, 12)
    injected = PlainRunner(backbone).features(
        random_inputs(backbone, 3, 8, 12), {}, Capture("key_value", (2,))
    )
    expected = PlainRunner(backbone).gradient(square, wrt, inputs, injected, capture, 8.0)
    found = BlockwiseRunner(backbone, **policy).gradient(square, wrt, inputs, injected, capture, 8.0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    assert (found[1] - expected[1]).norm() <= 1e-6 * expected[1].norm()
    assert found[1].dtype == torch.float32


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_one_chunk_is_bit_for_bit_plain_autograd(policy):
    backbone = tiny_backbone(layers=DEPTH)
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (3,))
    features, grid = PlainRunner(backbone).features(inputs, {}, capture), Grid(3, 4, 6)
    settings = Settings(model="small", rows="all")
    loss = FlowLoss(flow_targets(features, grid, settings), grid, settings)
    expected = PlainRunner(backbone).gradient(loss, "latents", inputs, {}, capture, 1.0)
    runner = BlockwiseRunner(backbone, **policy)
    for _ in range(2):  # the second run meets what the first has left behind
        found = runner.gradient(loss, "latents", inputs, {}, capture, 1.0)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_a_batch_is_bit_for_bit_single_forwards(backbone):
    """Two prompts go through each block together, and its weights are copied once."""
    inputs = random_inputs(backbone, 3, 8, 12)
    batch = [inputs, replace(inputs, prompt=torch.randn_like(inputs.prompt))]
    injected = PlainRunner(backbone).features(
        random_inputs(backbone, 3, 8, 12), {}, Capture("key_value", (1,))
    )
    expected = [PlainRunner(backbone).forward([each], injected)[0] for each in batch]
    weights = Streamed(backbone.blocks, torch.device("cpu"), 0)
    found = PlainRunner(backbone, weights).forward(batch, injected)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(*found)
    assert weights.copied_bytes == sum(block.bytes for block in weights.blocks)  # once for both


def test_plain_gradient_needs_resident_weights():
    backbone = tiny_backbone(layers=DEPTH)
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (2,))
    expected = PlainRunner(backbone).gradient(square, "latents", inputs, {}, capture, 1.0)
    forward = PlainRunner(backbone).forward([inputs], {})
    runner = PlainRunner(backbone, Streamed(backbone.blocks, torch.device("cpu"), 3))
    for _ in range(2):
        assert torch.equal(runner.forward([inputs], {})[0], forward[0])
        assert torch.equal(runner.gradient(square, "latents", inputs, {}, capture, 1.0)[1], expected[1])
    runner = PlainRunner(backbone, Streamed(backbone.blocks, torch.device("cpu"), 2))
    with pytest.raises(ValueError, match="block 2 needs the weights"):
        runner.gradient(square, "latents", inputs, {}, capture, 1.0)


class Count(TorchDispatchMode):
    """Counts how often an operator runs."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel, self.times = kernel, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.times += operation is self.kernel
        return operation(*args, **(kwargs or {}))


def test_kept_attention_is_computed_once():
    backbone = tiny_backbone(layers=DEPTH)
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (3,))
    for keep, times in {"inputs": 6, "attention": 3}.items():
        with Count(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default) as kernel:
            BlockwiseRunner(backbone, keep=keep).gradient(square, "latents", inputs, {}, capture, 1.0)
        assert kernel.times == times


def test_unrecognised_attention_is_computed_again(monkeypatch):
    """Attention written with plain operators: its softmax runs twice, and the gradient is right."""
    backbone = tiny_backbone(layers=DEPTH)
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (3,))
    expected = PlainRunner(backbone).gradient(square, "latents", inputs, {}, capture, 1.0)

    def written_out(inputs):
        weights = torch.einsum("bqmd,bkmd->bmqk", inputs.query, inputs.key) / inputs.query.shape[-1] ** 0.5
        return torch.einsum("bmqk,bkmd->bqmd", weights.softmax(dim=-1), inputs.value)

    monkeypatch.setattr(backbone, "attend", written_out)
    runner = BlockwiseRunner(backbone, keep="attention")
    with Count(torch.ops.aten._softmax.default) as softmax:
        found = runner.gradient(square, "latents", inputs, {}, capture, 1.0)
    assert softmax.times == 6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_kept_attention_holds_no_graph():
    """After the forward, only the results of each block's attention are alive."""
    from ditflow.memory.kept_attention import KeptAttention

    backbone = tiny_backbone()
    kept = KeptAttention(backbone.attend)
    attention = backbone.prepare(0, *backbone.embed(random_inputs(backbone, 3, 8, 12)))
    query = weakref.ref(attention.query.untyped_storage())
    attended = kept.forward(attention)
    assert not attended.requires_grad
    assert kept.results
    del attention
    assert query() is None
