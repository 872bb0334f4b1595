"""An out-of-memory error at a random layer of each phase."""

import json
import random

import pytest
import torch
from nursery import contents
from safetensors.torch import load_file

FAULT = pytest.mark.fault


def trap(nursery, stage):
    stage = f"layers of {stage}"
    return {"stage": stage, "at": random.Random(stage).randint(1, nursery.calls[stage])}


def latents(folder):
    return load_file(folder / "run" / "latents.safetensors")["latents"]


@FAULT("out of memory while denoising")
def test_falls_back_to_a_smaller_preset(nursery, tmp_path):
    assert nursery.transfer(tmp_path, trap=trap(nursery, "denoise")) == 0, nursery.error(tmp_path)
    assert "out of memory in denoise: going on with memory preset" in nursery.error(tmp_path)
    torch.testing.assert_close(latents(tmp_path), latents(nursery.folder), rtol=1e-5, atol=1e-5)
    assert contents(tmp_path / "run").keys() == nursery.whole.keys()


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("text", marks=FAULT("out of memory while prompts are encoded, with no smaller preset")),
        pytest.param("encode", marks=FAULT("out of memory while the clip is encoded")),
    ],
)
def test_goes_on_later_where_no_preset_needs_less(nursery, tmp_path, stage):
    assert nursery.transfer(tmp_path, trap=trap(nursery, stage), no_cache=True) == 1
    assert f"out of memory in {stage}" in nursery.error(tmp_path)
    assert nursery.resume(tmp_path) == 0
    assert contents(tmp_path / "run") == nursery.whole


@FAULT("out of memory while decoding, in frames smaller than any tile")
def test_latents_that_could_not_be_decoded_are_decoded_later(nursery, tmp_path):
    assert nursery.transfer(tmp_path, trap=trap(nursery, "decode")) == 1
    assert "out of memory in decode" in nursery.error(tmp_path)
    assert torch.equal(latents(tmp_path), latents(nursery.folder))
    assert not (tmp_path / "run" / "result.mp4").exists()
    assert nursery.run(tmp_path, "decode", "run", "--quiet") == 0
    assert contents(tmp_path / "run").keys() == nursery.whole.keys()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed"]
