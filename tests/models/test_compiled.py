"""torch.compile: few graphs serve all blocks and equal eager mode; the guided forward is one graph."""

import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_models import backbone_of, random_inputs, square, tiny_backbone, tiny_transformer
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.runtime.cache_dir_utils import cache_dir

from ditflow.errors import DitflowError
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import flow_targets
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.streamed import Streamed
from ditflow.models.cogvideox import transformer as cogvideox
from ditflow.models.compiling import compile_piece, compiles
from ditflow.models.protocols import Capture, Grid
from ditflow.settings import Settings


def test_guided_forward_and_loss_have_no_graph_break():
    backbone = tiny_backbone()
    runner, capture = PlainRunner(backbone), Capture("query_key", (1, 2))
    inputs = random_inputs(backbone, 3, 8, 12)
    clip = runner.features(random_inputs(backbone, 3, 8, 12), {}, capture)
    grid, settings = Grid(3, 4, 6), Settings(model="small")
    loss = FlowLoss(flow_targets(clip, grid, settings), grid, settings)

    def guided(latents):
        read = runner.read(replace(inputs, latents=latents), {}, capture)
        values = [loss(block, tokens) for block, tokens in read.items()]
        return torch.stack(values).mean()

    compiled = torch.compile(guided, fullgraph=True, backend="aot_eager")
    expected, expected_gradient = runner.gradient(loss, "latents", inputs, {}, capture, 1.0)
    latents = inputs.latents.clone().requires_grad_()
    value = compiled(latents)
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(torch.autograd.grad(value, latents)[0], expected_gradient)


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that models compile, without running inductor on them."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(cogvideox, "compile_piece", partial(compile_piece, backend=counter))
    return counter


def guided_pass(runner, inputs, injected, capture):
    """Everything that a guided step computes."""
    loss, gradient = runner.gradient(square, "latents", inputs, injected, capture, 1.0)
    read = runner.features(inputs, injected, capture)[capture.deepest]
    return [loss, gradient, *read, *runner.forward([inputs], injected)]


@pytest.mark.parametrize("depth, resident", [(2, 2), (5, 1)], ids=["resident", "streamed"])
def test_few_graphs_serve_all_blocks(depth, resident, graphs, monkeypatch):
    """Five blocks need as many graphs as two, wherever the weights are; the next step compiles none."""
    monkeypatch.setattr(cogvideox, "CHUNK", 20)  # several chunks, the last one ragged
    model, capture = tiny_transformer(layers=depth), Capture("query_key", (depth - 1,))
    eager, compiled = backbone_of(model), backbone_of(model, compiled=True)
    inputs = random_inputs(eager, 3, 8, 12)
    injected = PlainRunner(eager).features(random_inputs(eager, 3, 8, 12), {}, Capture("key_value", (0,)))
    expected = guided_pass(BlockwiseRunner(eager), inputs, injected, capture)

    weights = Streamed(compiled.blocks, torch.device("cpu"), resident, host="pageable")
    runner = BlockwiseRunner(compiled, weights)
    counts = []
    for _ in range(2):
        torch.testing.assert_close(guided_pass(runner, inputs, injected, capture), expected)
        counts.append(graphs.frame_count)
    before, output, feed_forward, chunks = 2, 2, 1, 3  # 2: without and with gradient; 3: video, ragged, text
    assert counts == [before + output + feed_forward + chunks] * 2
    operators = {str(node.target) for graph in graphs.graphs for node in graph.graph.nodes}
    assert any("qk_norm_rope" in name for name in operators)
    assert not any("attention" in name for name in operators)


@pytest.mark.parametrize("rotary, wrt", [(True, "embedding"), (False, "latents")], ids=["5b", "2b"])
def test_compiled_pieces_under_plain_autograd(rotary, wrt, graphs):
    model, capture = tiny_transformer(rotary, layers=2), Capture("query_key", (1,))
    eager, compiled = PlainRunner(backbone_of(model)), PlainRunner(backbone_of(model, compiled=True))
    inputs = random_inputs(eager.transformer, 3, 8, 12)
    torch.testing.assert_close(
        compiled.gradient(square, wrt, inputs, {}, capture, 8.0),
        eager.gradient(square, wrt, inputs, {}, capture, 8.0),
    )
    assert graphs.frame_count > 0


def double(tensor):
    return tensor + tensor


def test_models_do_not_use_up_each_others_graphs():
    """torch stops compiling a function after eight graphs; here each model brings its own sizes."""
    for size in range(1, 12):
        piece = compile_piece(double, backend="eager")
        assert torch.equal(piece(torch.ones(size)), torch.full([size], 2.0))


def test_artefacts_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that monkeypatch undoes what compile_piece sets
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compile_piece(double)
    assert cache_dir() == str(tmp_path / "ditflow" / "compiled")


def test_a_users_folder_for_artefacts_is_respected(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    compile_piece(double)
    assert cache_dir() == str(tmp_path / "mine")


def test_auto_compiles_on_a_gpu(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [compiles("off", cuda), compiles("auto", cuda), compiles("on", cuda)] == [False, True, True]
    assert [compiles("off", cpu), compiles("auto", cpu), compiles("on", cpu)] == [False, False, True]


@pytest.mark.parametrize(
    "device, missing", [("cpu", "C[+][+] compiler g[+][+]"), ("cuda", "C compiler .gcc or clang.")]
)
def test_a_missing_compiler_is_reported_beforehand(device, missing, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DitflowError, match=f"no {missing}; install it, or use --compile off"):
        compiles("on", torch.device(device))
    assert not compiles("auto", torch.device(device))


def test_missing_triton_is_reported_beforehand(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(
        DitflowError, match="no triton .pip install triton.; install it, or use --compile off"
    ):
        compiles("on", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_inductor_on_a_gpu():
    model = tiny_transformer(layers=3, attention_head_dim=64).to("cuda", torch.bfloat16)
    exact = backbone_of(tiny_transformer(layers=3, attention_head_dim=64).cuda())
    eager, compiled = backbone_of(model), backbone_of(model, compiled=True)
    inputs = random_inputs(exact, 3, 8, 12)
    inputs = replace(
        inputs,
        latents=inputs.latents.cuda(),
        prompt=inputs.prompt.cuda(),
        timestep=inputs.timestep.cuda(),
    )
    capture = Capture("query_key", (2,))
    passes = (guided_pass(BlockwiseRunner(model), inputs, {}, capture) for model in (exact, eager, compiled))
    for right, rounded, found in zip(*passes, strict=True):
        assert (found - right).norm() <= 2 * (rounded - right).norm() + 1e-3 * right.norm()
