"""The whole run's benchmark: the rival does the released code's work, ours does less, and both agree."""

import re
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_backbone

from bench.gates.rivals import flops
from bench.gates.table import read
from bench.harness import CPU
from bench.passes import passes
from bench.rivals import PLAIN, RIVAL, SIDES, ReleasedWay
from bench.timed import full
from bench.timed.contests import OURS
from bench.timed.full import RUNS
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.plain import PlainRunner
from ditflow.models.compute import Int8Linear
from ditflow.models.protocols import Capture, Grid, Inputs
from ditflow.planning.fake import FakeModel
from ditflow.settings import Settings
from ditflow.settings.speed import SPEEDS

TERA = 10**12
GUIDED, INJECTED = 1, 0


@pytest.fixture(scope="module")
def counted():
    """The committed table, which a gate holds true."""
    rows = {(row.name, row.metric): row.expected for row in read()}
    names = {side: f"rivals/whole-run/{side}" for side in RUNS}
    return {side: (rows[name, "optimisation_flops"], rows[name, "flops"]) for side, name in names.items()}


@pytest.mark.parametrize(
    "side, optimisation, whole",
    [("plain", 1.83, 1.34), ("attention kept", 1.61, 1.27), ("block by block", 1.42, 1.20)],
)
def test_ours_is_less_work(counted, side, optimisation, whole):
    """How many times less than the released way: exact, without a clock."""
    rival, ours = counted[RIVAL], counted[side]
    assert rival[0] >= optimisation * ours[0] and rival[1] >= whole * ours[1]


def test_what_the_sides_share_is_the_denoising(counted):
    denoising = {whole - optimisation for optimisation, whole in counted.values()}
    assert len(denoising) == 1 and denoising.pop() > 10 * TERA


def pull(_, read):
    return read.query.float().square().mean() + read.key.float().mean()


def test_the_rival_does_the_released_work():
    """5B at 24 frames: 235 TFLOP for an update, 1.2 of them for the flow; 115 for a forward or features."""
    settings = Settings(model="5b")
    capture, model = Capture("query_key", settings.guidance_blocks), FakeModel(settings)
    with fake_tensors():
        transformer = model.transformer()
        inputs, rival = model.inputs(transformer), ReleasedWay(transformer)
        update = flops(lambda: rival.gradient(pull, "latents", inputs, {}, capture, 1.0))
        features = flops(lambda: rival.features(inputs, {}, capture))
        forward = flops(lambda: rival.forward([inputs], {}))
    assert 233 * TERA < update < 234 * TERA
    assert features == forward and 114 * TERA < forward < 115 * TERA


@pytest.fixture
def inputs():
    embedding = tiny_backbone().embedding(Grid(2, 4, 6))
    return Inputs(torch.randn(1, 2, 4, 8, 12), torch.randn(1, 10, 12), torch.tensor([500]), embedding)


def test_the_rival_computes_what_a_runner_does(inputs):
    ours, rival = PlainRunner(tiny_backbone()), ReleasedWay(tiny_backbone())
    guided, taken = Capture("query_key", (GUIDED,)), Capture("key_value", (INJECTED,))
    clip = replace(inputs, latents=torch.randn_like(inputs.latents))
    injected = ours.features(clip, {}, taken)
    same(rival.features(clip, {}, taken)[INJECTED], injected[INJECTED])
    same(rival.features(inputs, injected, guided)[GUIDED], ours.features(inputs, injected, guided)[GUIDED])
    same(rival.forward([inputs, clip], injected), ours.forward([inputs, clip], injected))
    found = [each.gradient(pull, "latents", inputs, injected, guided, 4.0) for each in (rival, ours)]
    same(*found)
    same(rival.forward([inputs], {}), ours.forward([inputs], {}))  # the injection leaves nothing behind


def same(first, second):
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_rivals_weights_get_gradients_on_the_way(inputs):
    rival = ReleasedWay(tiny_backbone())
    rival.gradient(pull, "latents", inputs, {}, Capture("query_key", (GUIDED,)), 1.0)
    before, guided, after = rival.transformer.blocks
    assert all(parameter.grad is not None for parameter in before.parameters())
    assert guided.attn1.to_q.weight.grad is not None and guided.ff.net[2].weight.grad is None
    assert all(parameter.grad is None for parameter in after.parameters())


def test_the_command(monkeypatch, capsys):
    """What it prints here are no measurements; two sides of four will do."""
    monkeypatch.setattr(full, "RUNS", (RIVAL, "block by block"))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    full.main(["--quick", "--only", "whole run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| whole run |")]
    rows = {line.split(" | ")[1]: re.findall(r"([\d.e+]+) \(", line) for line in lines}
    assert list(rows) == [RIVAL, "block by block"]
    seconds, cpu, peak = zip(*(map(float, row) for row in rows.values()), strict=True)
    assert min(seconds) > 0 and min(cpu) > 0
    assert min(peak) > 45, "four layers of 15 MiB, less what malloc had left of the tiny run"
    assert peak[1] < peak[0]


def test_the_optimisation_is_a_run_without_denoising():
    case, calls = full.WARMUP, []

    class Counting(PlainRunner):
        def forward(self, *given):
            calls.append("denoising")
            return super().forward(*given)

        def gradient(self, *given):
            calls.append("update")
            return super().gradient(*given)

    def made(sides, monkeypatch):
        calls.clear()
        monkeypatch.setitem(SIDES, PLAIN, (Counting, "chunked"))
        sides(case, [PLAIN])[OURS]()()
        return list(calls)

    with pytest.MonkeyPatch.context() as patch:
        whole, part = (made(sides, patch) for sides in (full.whole_run, full.optimisation))
    assert "denoising" in whole and set(part) == {"update"}
    assert part.count("update") == whole.count("update")


def test_each_speed_does_what_it_sets():
    """With a step to reuse in: fewer updates, and fewer passes for the negative prompt."""
    case = replace(full.WARMUP, steps=8, optimisation_steps=2)
    sides = full.at_each_speed(case)
    runs = {speed: make()() for speed, make in sides.items()}
    assert list(sides) == list(SPEEDS)
    updates = {speed: len(run.losses[0]) for speed, run in runs.items()}
    assert updates == {"exact": 2, "fast": 2, "faster": 1}
    negatives = {speed: [step["negative"] for step in run.steps].count("run") for speed, run in runs.items()}
    assert negatives["exact"] == 8 and negatives["faster"] <= negatives["fast"] < 8
    kinds = {
        speed: {type(part) for part in replace(case, speed=speed).transformer().blocks.modules()}
        for speed in sides
    }
    assert Int8Linear in kinds["faster"] and Int8Linear not in kinds["exact"] | kinds["fast"]


def test_motion_flow_has_its_slow_rivals():
    works = full.works(full.QUICK)
    assert list(works) == [*full.FLOW, "optimisation", "whole run", "each --speed"]
    assert {"reference", "per head, float32", "library product alone", OURS} <= set(works["flow forward"]())
    assert {"per head, float32", "chunked, every row counts"} <= set(works["loss and gradients"]())


def test_the_slow_rivals_compute_the_same():
    size = full.SIZE._replace(grid=(2, 3, 4), heads=3, head_dim=16, dtype=torch.float32)
    for each in passes()[:2]:
        given = each.inputs(size, CPU, 0)
        rivals = {rival.name: rival for rival in each.rivals() + each.slow_rivals()}
        results = [rivals[name].call(*given) for name in ("reference", "per head, float32")]
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
