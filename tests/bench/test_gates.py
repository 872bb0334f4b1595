"""Work and memory on fake tensors: they are counted right, and are as expected at the real 5B size.

The numbers themselves are in bench/expected.csv.
"""

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from bench.gates.table import read
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.host import keep_on_host
from ditflow.memory.plain import PlainRunner
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Capture
from ditflow.planning.fake import FakeModel
from ditflow.settings import Settings
from ditflow_kernels.backends import as_on

TERA = 10**12
MIB = 1 << 20
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
TOKENS = 226 + 6 * 1350  # text, and 24 frames of 720x480


@pytest.fixture(scope="module")
def guided():
    """5B at 24 frames, 720x480."""
    settings = Settings(model="5b")
    with fake_tensors():
        model = FakeModel(settings)
        transformer = model.transformer()
        yield transformer, model.inputs(transformer)


def pull(_, read):
    """Stands in for a loss of queries and keys, whose own work these gates do not check."""
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


def test_tracker_knows_what_is_saved_for_backward():
    def graph():
        x = torch.ones(MIB // 4, requires_grad=True)
        y = x.exp()  # saved: its gradient needs it
        z = (y + 1).sum()
        return torch.autograd.grad(z, x)

    # x and y, and besides y + 1 in forward, the gradient of x in backward (that of y has no storage)
    assert work(graph).peak_bytes == pytest.approx(3 * MIB, abs=64)


def test_tracker_leaves_out_host_memory():
    present = torch.empty(3 * MIB, dtype=torch.uint8)
    assert work(lambda: present.clone(), present).peak_bytes == 6 * MIB
    keep_on_host(present)
    assert work(lambda: present.clone(), present).peak_bytes == 3 * MIB


def test_tracker_counts_by_formulas_that_come_while_it_counts(monkeypatch):
    """The kernels' operators are registered at their first call."""
    one = torch.ones(2)
    with Tracker() as found:
        monkeypatch.setitem(flop_registry, torch.ops.aten.add, lambda *_, **__: 7)
        one + one
    assert found.flops == 7


def test_attention_is_counted():
    query = torch.empty(1, 3, 50, 16, requires_grad=True)
    with fake_tensors():
        query = torch.empty(1, 3, 50, 16, requires_grad=True)
        forward = 4 * 3 * 50 * 50 * 16

        def attend():
            return torch.nn.functional.scaled_dot_product_attention(query, query, query)

        assert work(attend).flops == forward
        assert work(lambda: torch.autograd.grad(attend().sum(), query)).flops == int(3.5 * forward)


def test_attention_counts_the_buffer_that_its_backward_hides():
    """Its output, its sums and three gradients are seen; a float32 gradient of the queries is not."""
    with fake_tensors():
        tokens = [torch.empty(1, 4, 512, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        upstream = torch.empty(1, 4, 512, 64, dtype=torch.bfloat16)

        def backward():
            output = torch.nn.functional.scaled_dot_product_attention(*tokens)
            torch.autograd.grad(output, tokens, upstream)

        size = 4 * 512 * 64
        seen = 2 * size + 4 * 4 * 512 + 3 * 2 * size
        assert work(backward).peak_bytes == seen + 4 * size


@pytest.fixture(scope="module")
def expected():
    """Looks up a name and a metric in the committed table, which the gates keep true."""
    rows = {(row.name, row.metric): row.expected for row in read()}
    return lambda name, metric: rows[name, metric]


@pytest.mark.parametrize("checkpoint, attentions", [("none", 3.5), ("attention", 3.5), ("block", 4.5)])
def test_attention_is_computed_once_where_it_is_kept(expected, checkpoint, attentions):
    """Its backward is 2.5 times its forward, in each of twenty blocks."""
    found = expected(f"steps/5b-24/optimise-{checkpoint}", "attention_flops")
    assert found == attentions * 20 * 4 * TOKENS**2 * 3072


@pytest.mark.parametrize(
    "step, released",
    [("optimise-none", 235), ("optimise-attention", 235), ("optimise-block", 235), ("reference", 115)],
)
def test_less_work_than_the_released_code(expected, step, released):
    """In TFLOP at 24 frames; the released code runs all 42 blocks in each of its passes."""
    assert expected(f"steps/5b-24/{step}", "flops") < 0.8 * released * TERA


def test_a_step_on_the_smallest_card_copies_each_block_once_each_way(expected):
    """20 blocks forward; 21 backward, of which the ring has one; the inputs of all blocks but the last."""
    copied = expected("streaming/5b-49/optimise", "copied_bytes")
    assert copied / MIB == pytest.approx(40 * 252.1 + 20 * 104.2, rel=0.001)


def test_nothing_lives_between_blocks_but_their_inputs(guided):
    """The memory of the block-wise backward grows with each block by that block's inputs."""
    transformer, inputs = guided
    runner = BlockwiseRunner(transformer)

    def peak(block):
        found = work(
            lambda: runner.gradient(pull, "latents", inputs, {}, Capture("query_key", (block,)), 1.0),
            *transformer.network.parameters(),
        )
        return found.peak_bytes

    assert peak(9) - peak(5) == pytest.approx(4 * TOKENS * 3072 * 2, rel=0.01)
    assert all(parameter.grad is None for parameter in transformer.network.parameters())


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", [PlainRunner, BlockwiseRunner])
def test_fake_tensors_predict_the_peak_on_a_gpu(kind):
    """Four of 5B's blocks at 24 frames, with arbitrary values."""
    model, capture = FakeModel(Settings(model="5b")), Capture("query_key", (3,))

    def four_blocks():
        transformer = model.transformer()
        del transformer.blocks[4:]
        return transformer

    def step(transformer, inputs):
        kind(transformer).gradient(pull, "latents", inputs, {}, capture, 1.0)

    with fake_tensors(), as_on("cuda"):
        transformer = four_blocks()
        inputs = model.inputs(transformer)
        present = [*transformer.network.parameters(), *vars(inputs).values()]
        predicted = work(lambda: step(transformer, inputs), *present).peak_bytes
    with torch.device("meta"):
        transformer = four_blocks()
    transformer.network.to_empty(device="cuda")
    with torch.device("cuda"):
        inputs = model.inputs(transformer)
    step(transformer, inputs)
    torch.cuda.reset_peak_memory_stats()
    step(transformer, inputs)
    assert torch.cuda.max_memory_allocated() == pytest.approx(predicted, rel=0.05)
