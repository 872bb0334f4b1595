"""An out-of-memory error in a random layer of each phase."""

import json
import random

import pytest
import torch
from run_processes import contents
from safetensors.torch import load_file

FAULT = pytest.mark.fault


def trap(fork_server, stage):
    stage = f"layers of {stage}"
    return {"stage": stage, "at": random.Random(stage).randint(1, fork_server.calls[stage])}


def latents(folder):
    return load_file(folder / "run" / "latents.safetensors")["latents"]


@FAULT("out of memory while denoising")
def test_falls_back_to_a_smaller_preset(fork_server, tmp_path):
    assert fork_server.transfer(tmp_path, trap=trap(fork_server, "denoise")) == 0, fork_server.error(tmp_path)
    told = "out of memory in denoise: continuing with gradient checkpointing off"
    assert told in fork_server.error(tmp_path)
    torch.testing.assert_close(latents(tmp_path), latents(fork_server.folder), rtol=1e-5, atol=1e-5)
    assert contents(tmp_path / "run").keys() == fork_server.whole.keys()


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("text", marks=FAULT("out of memory while encoding prompts, with no smaller preset")),
        pytest.param("encode", marks=FAULT("out of memory while encoding the clip")),
    ],
)
def test_resumes_later_where_no_preset_needs_less(fork_server, tmp_path, stage):
    assert fork_server.transfer(tmp_path, trap=trap(fork_server, stage), no_cache=True) == 1
    assert f"out of memory in {stage}" in fork_server.error(tmp_path)
    assert fork_server.resume(tmp_path) == 0
    assert contents(tmp_path / "run") == fork_server.whole


@FAULT("out of memory while decoding frames smaller than any tile")
def test_latents_are_kept_and_decoded_later(fork_server, tmp_path):
    assert fork_server.transfer(tmp_path, trap=trap(fork_server, "decode")) == 1
    assert "out of memory in decode" in fork_server.error(tmp_path)
    assert torch.equal(latents(tmp_path), latents(fork_server.folder))
    assert not (tmp_path / "run" / "result.mp4").exists()
    assert fork_server.run(tmp_path, "decode", "run", "--quiet") == 0
    assert contents(tmp_path / "run").keys() == fork_server.whole.keys()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed"]
