"""The whole run's benchmark: the rival does the released code's work, ours does less, and both agree."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_transformer

from bench import whole_run
from bench.rivals import RIVAL, ReleasedWay
from bench.subjects import FULL, QUICK
from bench.whole_run import RUNS, flops, operations
from ditflow.memory.plain import PlainRunner
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.protocols import Grid, Inputs, Until
from ditflow.planning.fake import fake_backbone, fake_inputs, fake_tensors
from ditflow.settings import Settings

TERA = 10**12
GUIDED, INJECTED = 1, 0


@pytest.fixture(scope="module")
def counted():
    return {side: operations(side, FULL) for side in RUNS}


@pytest.mark.parametrize(
    "side, optimisation, whole",
    [("plain", 1.83, 1.34), ("attention kept", 1.61, 1.27), ("block by block", 1.42, 1.20)],
)
def test_ours_is_less_work(counted, side, optimisation, whole):
    """How many times less than the released way: exact, with no clock."""
    rival, ours = counted[RIVAL], counted[side]
    assert rival["optimisation_flops"] >= optimisation * ours["optimisation_flops"]
    assert rival["whole_flops"] >= whole * ours["whole_flops"]


def test_what_the_sides_share_is_the_denoising(counted):
    denoising = {found["whole_flops"] - found["optimisation_flops"] for found in counted.values()}
    assert len(denoising) == 1 and denoising.pop() > 10 * TERA


def pull(_, read):
    return read.query.float().square().mean() + read.key.float().mean()


def test_the_rival_does_the_released_work():
    """5B at 24 frames: an update 235 TFLOP, 1.2 for the flow among them; a forward 115, for features too."""
    settings = Settings(model="5b")
    until = Until("query_key", settings.guidance_blocks)
    with fake_tensors():
        backbone = fake_backbone(settings)
        inputs, rival = fake_inputs(settings, backbone), ReleasedWay(backbone)
        update = flops(lambda: rival.gradient(pull, "latents", inputs, {}, until, 1.0))
        features = flops(lambda: rival.features(inputs, {}, until))
        forward = flops(lambda: rival.forward([inputs], {}))
    assert 233 * TERA < update < 234 * TERA
    assert features == forward and 114 * TERA < forward < 115 * TERA


@pytest.fixture
def inputs():
    embedding = CogVideoX(tiny_transformer()).embedding(Grid(2, 4, 6))
    return Inputs(torch.randn(1, 2, 4, 8, 12), torch.randn(1, 10, 12), torch.tensor([500]), embedding)


def test_the_rival_computes_what_a_runner_does(inputs):
    ours, rival = PlainRunner(CogVideoX(tiny_transformer())), ReleasedWay(CogVideoX(tiny_transformer()))
    until, taken = Until("query_key", (GUIDED,)), Until("key_value", (INJECTED,))
    clip = replace(inputs, latents=torch.randn_like(inputs.latents))
    injected = ours.features(clip, {}, taken)
    same(rival.features(clip, {}, taken)[INJECTED], injected[INJECTED])
    same(rival.features(inputs, injected, until)[GUIDED], ours.features(inputs, injected, until)[GUIDED])
    same(rival.forward([inputs, clip], injected), ours.forward([inputs, clip], injected))
    found = [each.gradient(pull, "latents", inputs, injected, until, 4.0) for each in (rival, ours)]
    same(*found)
    same(rival.forward([inputs], {}), ours.forward([inputs], {}))  # nothing is left of the injection


def same(first, second):
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_rivals_weights_get_gradients_on_the_way(inputs):
    rival = ReleasedWay(CogVideoX(tiny_transformer()))
    rival.gradient(pull, "latents", inputs, {}, Until("query_key", (GUIDED,)), 1.0)
    before, guided, after = rival.transformer.transformer_blocks
    assert all(parameter.grad is not None for parameter in before.parameters())
    assert guided.attn1.to_q.weight.grad is not None and guided.ff.net[2].weight.grad is None
    assert all(parameter.grad is None for parameter in after.parameters())


def test_the_command(monkeypatch, capsys, tmp_path):
    """What it prints here are no measurements; two sides of four will do."""
    sides = (RIVAL, "block by block")
    monkeypatch.setattr(whole_run, "RUNS", sides)
    monkeypatch.setattr(sys, "argv", ["whole_run", "--quick", "--json", str(tmp_path / "found.json")])
    whole_run.main()
    lines = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "found.json").read_text())["sides"]
    for side in sides:
        (line,) = (line for line in lines if line.startswith(f"| {side} |"))
        assert f"| {written[side]['whole_seconds']:.1f} (" in line
        for seconds in ("seconds", "cpu_seconds"):
            assert 0 < written[side][f"optimisation_{seconds}"] < written[side][f"whole_{seconds}"]
        # four layers of 15 MiB, less what malloc had left of the tiny run
        assert written[side]["peak_mib"] > 45 and written[side]["loaded_mib"] > 100
        assert written[side]["difference"] <= (0 if side == RIVAL else 1e-4)
    assert written["block by block"]["peak_mib"] < written[RIVAL]["peak_mib"]


def test_other_latents_fail(monkeypatch):
    monkeypatch.setattr(whole_run, "operations", lambda side, case: {})

    def latents_of_plain(value):
        values = dict.fromkeys(RUNS, 1.0) | {"plain": value}
        rows = [{"latents": np.full(5, each)} for each in values.values()]
        monkeypatch.setattr(whole_run, "in_fresh_processes", lambda function, cases: rows)
        return whole_run.measure(QUICK)

    for wrong in (1.0002, float("nan")):
        with pytest.raises(whole_run.WrongResult, match="^plain: latents differ"):
            latents_of_plain(wrong)
    assert latents_of_plain(1.00005)["plain"]["difference"] == pytest.approx(5e-5, rel=1e-3)
