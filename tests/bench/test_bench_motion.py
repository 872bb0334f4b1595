"""The benchmark of motion: its clips and its modes."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.torch import load_file

from bench import motion
from bench.motion import FAR, MODES, Pair, measure
from ditflow import Settings

SHORT = {
    "frames": 9,
    "size": "48x32",
    "steps": 4,
    "guided": 0.5,
    "optimisation_steps": 2,
    "negative_prompt": "",
}


def test_pairs_come_from_the_seed():
    first, again, other = Pair.draw(3, 0), Pair.draw(3, 0), Pair.draw(3, 1)
    assert (first.clip.frames == again.clip.frames).all()
    assert (first.prompt, first.other_prompt, first.noise) == (again.prompt, again.other_prompt, again.noise)
    assert (first.clip.caption, first.prompt, first.noise) != (other.clip.caption, other.prompt, other.noise)
    assert first.prompt != first.other_prompt


def test_every_clip_has_motion_to_follow():
    for index in range(20):
        assert np.ptp(Pair.draw(1, index).clip.centroids, axis=0).max() >= FAR


def test_modes_differ_from_the_same_noise(small_folder, tmp_path):
    pair = Pair.draw(0, 0, frames=9)
    settings = Settings(**SHORT, model=str(small_folder), device="cpu", guidance_blocks=[2], guidance_scale=2)
    latents = {}
    for mode in MODES:
        found = measure(pair, mode, settings, tmp_path)
        latents[mode] = load_file(tmp_path / mode / "latents.safetensors")["latents"]
        record = json.loads((tmp_path / mode / "run.json").read_text())
        assert len(record["losses"]) == (0 if mode in ("backbone", "injection", "zero-shot") else 2)
        assert all(np.isfinite(value) for value in asdict(found).values())
        assert 0 < found.seconds_guided < found.seconds
    for first in MODES:
        for second in MODES:
            assert first == second or (latents[first] - latents[second]).abs().max() > 1e-4, (first, second)


@pytest.mark.parametrize("style", ["rope", "sincos", "wan"])
def test_the_command(style, monkeypatch, capsys):
    asked = []

    def measured(pair, mode, settings, scratch):
        asked.append((mode, pair.noise, settings))
        return motion.Measured(0.5 + len(asked), 0.25, 1.0, 2.0, 1.0)

    monkeypatch.setattr(motion, "measure", measured)
    words = ["--pairs", "2", "--modes", "flow,backbone", "--model-style", style, "--json"]
    motion.main([*words, "--set", "dtype=bfloat16", "--set", "steps=30"])
    found = json.loads(capsys.readouterr().out)
    assert [mode for mode, *_ in asked] == ["flow", "backbone"] * 2
    assert asked[0][1] == asked[1][1] != asked[2][1]
    settings = asked[0][2]
    assert settings.model == {"rope": "small", "sincos": "small-sincos", "wan": "small-wan"}[style]
    assert (settings.size, settings.steps, settings.dtype) == ((96, 64), 30, "bfloat16")
    assert found["set"] == ["dtype=bfloat16", "steps=30"] and found["date"] and found["commit"]
    flow, backbone = found["modes"]
    assert flow["mode"] == "flow" and flow["path_fidelity"]["mean"] == 2.5
    assert flow["path_fidelity"]["half_width"] == pytest.approx(12.706)
    assert backbone["seconds_guided"] == {"mean": 1.0, "half_width": 0.0, "count": 2}


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--modes", "flow,floww"], "--modes of backbone"), (["--set", "stepps=3"], "'steps'")],
)
def test_bad_words_are_explained(words, said, capsys):
    with pytest.raises(SystemExit):
        motion.main(words)
    assert said in capsys.readouterr().err
