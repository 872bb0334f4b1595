"""Named ranges and `--profile`: what they capture; runs stay the same, and it costs nothing if unused."""

import csv
import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ddim_schedule, random_inputs, text_embeddings, tiny_backbone

from ditflow import transfer
from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.guidance.optimise import Guidance, loss_scaler
from ditflow.jobs import transfer as jobs
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.models.cogvideox.transformer import Pieces
from ditflow.models.compiling import compile_piece
from ditflow.models.protocols import Capture
from ditflow.profiling import ranges
from ditflow.profiling.capture import NsightCapture, Request, StepCapture, TorchCapture
from ditflow.profiling.explain import explain
from ditflow.profiling.trace import read_trace
from ditflow.run_folder.run import Run
from ditflow.sampling.loop import Scale, Step, denoise
from ditflow_kernels import int8_linear, motion_flow, motion_flow_loss, qk_norm_rope, quantise_weight
from ditflow_kernels.fakes import FAKES

KERNEL = "kernel/qk_norm_rope"


@pytest.fixture
def loop():
    """Four denoising steps of a tiny model, two of them guided with two optimisation steps each."""
    backbone = tiny_backbone()
    inputs = random_inputs(backbone, 3, 8, 12)
    grid = backbone.grid(inputs.latents)
    flow = torch.ones(grid.frames, grid.frames, grid.height * grid.width, 2)

    def loss(_, read):
        return motion_flow_loss(read.query, read.key, flow, grid, 2.0)

    def run():
        guidance = Guidance(
            loss,
            Capture("query_key", (1,)),
            "latents",
            2,
            [0.1, 0.1],
            loss_scaler(torch.float32, flow.device),
        )
        schedule = ddim_schedule(4)
        return denoise(
            BlockwiseRunner(backbone), schedule, Step(-1, inputs.latents, inputs.embedding, []),
            inputs.embedding, text_embeddings(inputs.prompt), Scale(1.0, False), 2, guidance, None, None,
            lambda step: None,
        )  # fmt: skip

    run.backbone = backbone
    return run


class Recorder:
    """Records every range with the ranges around it. Implements `ditflow.profiling.ranges.Observer`."""

    def __init__(self):
        self.open, self.seen = [], []

    @contextmanager
    def range(self, name):
        self.open.append(name)
        self.seen.append(tuple(self.open))
        try:
            yield
        finally:
            assert self.open.pop() == name

    def steps(self, indices, guided):
        return indices

    def inside(self, *outer):
        return [names[len(outer) :] for names in self.seen if names[: len(outer)] == outer and names != outer]


def test_steps_blocks_and_kernels_have_names(loop):
    recorder = Recorder()
    with ranges.observed_by(recorder):
        loop()
    steps = ["step/000/guided", "step/001/guided", "step/002/plain", "step/003/plain"]
    assert [names[0] for names in recorder.seen if len(names) == 1] == steps
    forward = [(block, *inner) for block in ("block/00", "block/01", "block/02") for inner in ((), (KERNEL,))]
    assert recorder.inside(steps[2]) == forward
    guided = recorder.inside(steps[1])
    assert [names for names in guided if len(names) == 1 and "block" not in names[0]] == [
        ("optimise/001/0",),
        ("optimise/001/1",),
    ]
    assert recorder.inside(steps[1], "optimise/001/1") == [
        ("block/00",), ("block/00", KERNEL),  # to the input of block 1
        ("block/01",), ("block/01", KERNEL), ("block/01", "kernel/motion_flow_loss"),
        ("block/01", "kernel/motion_flow_loss_backward"), ("block/01", f"{KERNEL}_backward"),
        ("block/00",), ("block/00", KERNEL), ("block/00", f"{KERNEL}_backward"),
    ]  # fmt: skip
    assert not recorder.open


def test_every_operator_has_a_name():
    """And an observer receives nothing after its context ends."""
    query, key = torch.randn(2, 8, 2, 4, requires_grad=True).unbind()
    norm, grid = (torch.ones(4), torch.zeros(4), 1e-6), (2, 2, 2)
    recorder = Recorder()
    with ranges.observed_by(recorder):
        query, key = qk_norm_rope(query[None], key[None], norm, norm, None, 0)
        motion_flow(query[0], key[0], grid, 2.0, hard=True)
        flow = motion_flow(query[0], key[0], grid, 2.0)
        (flow.sum() + motion_flow_loss(query[0], key[0], flow.detach(), grid, 2.0)).backward()
        int8_linear(
            torch.randn(2, 4, requires_grad=True), *quantise_weight(torch.randn(4, 4)), None
        ).sum().backward()
    names = {f"kernel/{operator.name().removeprefix('ditflow::')}" for operator in FAKES}
    assert {name for (name,) in recorder.seen} == names
    seen = len(recorder.seen)
    motion_flow(query[0], key[0], grid, 2.0, hard=True)
    assert not recorder.open and len(recorder.seen) == seen


def test_without_an_observer_nothing_is_wrapped(loop, monkeypatch):
    """Loops get their own objects back, operators report nothing, no profiler is imported or called."""
    indices, recorder = range(3), Recorder()
    with pytest.raises(KeyboardInterrupt), ranges.observed_by(recorder):
        assert ranges.blocks(indices) is not indices
        raise KeyboardInterrupt
    assert ranges.steps(indices, 2) is indices
    assert ranges.blocks(indices) is indices
    assert ranges.optimisation_steps(0, 3) == indices

    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(torch.profiler, "record_function", None)
    monkeypatch.setattr(torch.profiler, "profile", None)
    loop()
    assert not recorder.seen


def test_a_pass_that_ends_early_closes_its_range():
    recorder = Recorder()
    with ranges.observed_by(recorder):
        for _ in ranges.blocks(range(3)):
            break
        assert not recorder.open
    assert recorder.seen == [("block/00",)]


def test_compiled_pieces_stay_whole_graphs(loop):
    backbone = loop.backbone
    inputs, expected = random_inputs(backbone, 3, 8, 12), loop()
    backbone.pieces = Pieces(
        *(compile_piece(piece, "eager") for piece in Pieces())
    )  # fullgraph: breaks raise
    recorder = Recorder()
    with ranges.observed_by(recorder):
        BlockwiseRunner(backbone).forward([inputs], {})
    assert recorder.seen.count(("block/01", KERNEL)) == 1
    backbone.pieces = Pieces()
    assert torch.equal(loop(), expected)


def test_torch_profiler_captures_the_steps_around_the_last_guided_one(loop, tmp_path):
    expected, capture = loop(), TorchCapture(1)
    with ranges.observed_by(capture):
        assert torch.equal(loop(), expected)
    capture.write(tmp_path)
    folder = tmp_path / "profile"
    assert {path.name for path in folder.iterdir()} == {"trace.json.gz", "memory.csv", "operators.txt"}

    trace = read_trace(folder / "trace.json.gz")
    names = [found.name for found in sorted(trace.ranges, key=lambda found: found.start)]
    assert [name for name in names if name.startswith(("phase", "step"))] == [
        "phase/denoise",
        "step/001/guided",
        "step/002/plain",
    ]
    assert {"optimise/001/0", "optimise/001/1", "block/02", "kernel/motion_flow_loss"} <= set(names)
    said = explain(trace)
    guided, plain = said.split("plain step: 1 recorded")
    assert "guided step: 1 recorded" in guided and "kernel/motion_flow_loss" in guided
    assert "aten::addmm" in plain and "optimise" not in plain

    with (folder / "memory.csv").open() as file:
        memory = list(csv.DictReader(file))
    times = [float(row["milliseconds"]) for row in memory]
    assert times == sorted(times) and times[-1] > 0
    assert {row["device"] for row in memory} == {"cpu"}
    assert max(int(row["allocated_bytes"]) for row in memory) > 1000
    operators = (folder / "operators.txt").read_text()
    assert "aten::addmm" in operators and "Self CPU time total" in operators


@pytest.fixture
def nsight(monkeypatch):
    """Records what an Nsight tool would receive: ranges that open (+) and close (-), CUDA profiler calls."""
    heard = []

    @contextmanager
    def annotate(name, domain):
        heard.append(f"+{domain}@{name}")
        yield
        heard.append(f"-{domain}@{name}")

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: heard.append("synchronize"))
    for call in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, call, lambda call=call: heard.append(call))
    return heard


def test_nsight_records_from_the_first_captured_step_to_the_last(loop, nsight, monkeypatch):
    capture = NsightCapture(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with ranges.observed_by(capture):
        loop()
    begin, end = nsight.index("start"), nsight.index("stop")
    assert nsight[begin - 1] == nsight[end - 1] == "synchronize"
    captured = [name for name in nsight[begin:end] if "step/" in name or "phase/" in name]
    assert captured == [
        "+ditflow@phase/denoise",
        "+ditflow@step/001/guided",
        "-ditflow@step/001/guided",
        "+ditflow@step/002/plain",
        "-ditflow@step/002/plain",
        "-ditflow@phase/denoise",
    ]
    assert "+ditflow@kernel/motion_flow_loss" in nsight[begin:end]
    assert nsight.count("start") == nsight.count("stop") == 1


def test_nsight_needs_a_gpu_and_nvtx(nsight, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(DitflowError, match="needs the package nvtx: pip install"):
        NsightCapture(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DitflowError, match="needs a CUDA GPU"):
        NsightCapture(1)


@pytest.mark.parametrize(
    "count, guided, wanted",
    [(2, 10, [8, 9, 10, 11]), (2, 1, [0, 1, 2]), (3, 0, [0, 1, 2]), (2, 50, [48, 49])],
    ids=["both", "one-guided", "only-plain", "only-guided"],
)
def test_which_steps_are_captured(count, guided, wanted):
    class Watched(StepCapture):
        range, running, captured = Recorder().range, False, ()

        def start(self):
            self.running = True

        def stop(self):
            self.running = False

    watched, passed = Watched(count), []
    for index in watched.steps(range(50), guided):
        passed.append(index)
        if watched.running:
            watched.captured += (index,)
    assert passed == list(range(50))
    assert list(watched.captured) == wanted
    assert not watched.running


@pytest.mark.parametrize("words", ["steps", "steps=0", "steps=x", "step=2", "steps=2,3", ""])
def test_bad_requests_are_one_line(words, capsys):
    assert main(["transfer", "--model", "small", "--profile", words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ditflow: --profile: {words!r} given; accepted: steps=N")
    assert error.count("\n") == 1


def test_the_environment_names_the_profiler(monkeypatch):
    assert Request.read("steps=2") == Request(2, "torch")
    monkeypatch.setenv("DITFLOW_PROFILER", "nsight")
    assert Request.read("steps=2") == Request(2, "nsight")
    monkeypatch.setenv("DITFLOW_PROFILER", "perf")
    with pytest.raises(DitflowError, match="DITFLOW_PROFILER: 'perf' given; accepted: torch or nsight"):
        Request.read("steps=2")


@pytest.mark.parametrize("command", ["transfer", "inject"])
def test_the_command_leaves_the_profile_in_the_run_folder(command, loop, monkeypatch, tmp_path, capsys):
    def job(settings, progress):
        loop()
        return Run(tmp_path)

    monkeypatch.setattr(jobs, "transfer", job)
    (tmp_path / "settings.yaml").write_text(f"model: small\nvideo: {tmp_path}\nprompt: x\n")
    origin = ["--from", tmp_path] if command == "inject" else ["--config", tmp_path / "settings.yaml"]
    assert main([command, *map(str, origin), "--profile", "steps=1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}\n"
    assert f"profile: {tmp_path / 'profile'}" in captured.err
    assert (tmp_path / "profile" / "trace.json.gz").is_file()


def test_a_profiled_run_is_the_same_run(settings, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(replace(settings, steps=2).to_yaml())
    assert main(["transfer", "--config", str(config), "--profile", "steps=1", "--quiet"]) == 0
    watched = Path(capsys.readouterr().out.strip())
    plain = transfer(replace(settings, steps=2)).folder
    assert (watched / "settings.yaml").read_text() == (plain / "settings.yaml").read_text()
    latents = [load_file(folder / "latents.safetensors")["latents"] for folder in (watched, plain)]
    assert torch.equal(*latents)
    losses = [json.loads((folder / "run.json").read_text())["losses"] for folder in (watched, plain)]
    assert losses[0] == losses[1]
    assert (watched / "profile").is_dir() and not (plain / "profile").exists()
