"""Whole runs with all that `--speed` sets, in every memory preset and after an interruption."""

import json
from dataclasses import replace

import pytest
import torch
from quick_runs import interrupted_in
from tiny_pipelines import latents

from ditflow import resume, transfer
from ditflow.cli.main import main
from ditflow.models.cogvideox.schedule import CogVideoXSchedule
from ditflow.planning import plan
from ditflow.settings import read_settings
from ditflow.settings.speed import exact, speed_settings

SPEEDS = ("fast", "faster")


@pytest.fixture
def at_speed(settings):
    """Settings of a run in which each rule acts: the guidance scale rises, and 8 steps are not guided."""
    rises = replace(settings, steps=10, guided=0.2, guidance_scale=4, dynamic_scale=True, scheduler="dpm")
    return lambda speed: replace(rises, speed=speed, **speed_settings(speed))


@pytest.fixture(scope="module")
def expected():
    """Holds the latents of each speed's plain run, once a test has made it."""
    return {}


@pytest.mark.parametrize("name", ["4gb", "12gb", "16gb", "80gb"])  # no two recompute and stream alike
def test_every_kind_of_preset_gives_the_same_latents(at_speed, expected, name, monkeypatch):
    def fewest_resident(phases, preset, free, sizes):
        return 3 if preset.checkpoint == "none" else 0

    if "faster" not in expected:
        expected["faster"] = latents(transfer(at_speed("faster")))
    monkeypatch.setattr(plan, "_resident_blocks", fewest_resident)
    run = transfer(replace(at_speed("faster"), memory=name))
    torch.testing.assert_close(latents(run), expected["faster"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [1, 4, 8])
@pytest.mark.parametrize("speed", SPEEDS)
def test_resumes_bit_for_bit(at_speed, expected, speed, step, monkeypatch, tmp_path):
    settings = at_speed(speed)
    if speed not in expected:
        expected[speed] = latents(transfer(settings))
    stopped = tmp_path / "stopped"
    with interrupted_in(step, CogVideoXSchedule, monkeypatch), pytest.raises(KeyboardInterrupt):
        transfer(replace(settings, output=str(stopped)))
    assert not (stopped / "latents.safetensors").exists()
    assert torch.equal(latents(resume(stopped)), expected[speed])


def test_the_command_line_runs_what_a_speed_sets(at_speed, tmp_path, capsys):
    """And `run.json` says what each step did."""
    passes = {}
    for speed in ("exact", *SPEEDS):
        config = tmp_path / f"{speed}.yaml"
        config.write_text(replace(exact(at_speed(speed)), output=str(tmp_path / speed)).to_yaml())
        assert main(["transfer", "--config", str(config), "--speed", speed, "--quiet"]) == 0
        steps = json.loads((tmp_path / speed / "run.json").read_text())["steps"]
        passes[speed] = [step["negative"] for step in steps]
        found = read_settings(tmp_path / speed / "settings.yaml")
        chosen = speed_settings(speed) | {"attention_forward": found.attention_forward}
        assert {name: getattr(found, name) for name in chosen} == chosen
    assert passes["exact"] == ["run"] * 10
    assert passes["fast"].count("reused") == 4
    assert passes["faster"].count("none") >= 1 and passes["faster"].count("run") < passes["fast"].count("run")
