"""Every command on small Wan models, through the command line."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from gguf import GGMLQuantizationType as Kind
from quantised_models import write_gguf
from quick_runs import GUIDED_WAYS, interrupted_in, latents, record
from run_processes import contents
from safetensors.torch import load_file, save_file
from tiny_wan_pipelines import KINDS
from wan_runs import PROMPT, QUICK

from ditflow.memory.presets import PRESETS
from ditflow.memory.streamed import Streamed
from ditflow.models.wan.schedule import WanSchedule
from ditflow.planning import plan
from ditflow.settings import read_settings
from ditflow.video import read_clip

DEPTH = 5
NOISED = ("--reference-noise", "step", "--initial-latents", "clip:0.6", "--steps", "10")  # makes 6 steps


@pytest.fixture(scope="module")
def free(made):
    """The latents without guidance or injection, and those of the clip."""
    return made("--no-guidance", "--no-injection")


@pytest.fixture(scope="module")
def resident(made):
    """The latents of a run whose weights all stay on the device."""
    return made("--memory", "80gb")["latents"]


@pytest.mark.parametrize("loss, injection, optimise", GUIDED_WAYS)
def test_transfer(transfer, free, loss, optimise, injection):
    words = ("--loss", loss, "--optimise", optimise, injection, "--optimisation-steps", "3")
    run = transfer(*words, "--moft-channels", "0.5", "--learning-rate", "0.01", "0.01")
    found = load_file(run / "latents.safetensors")
    assert found["latents"].shape == (1, 3, 4, 8, 12)
    assert torch.equal(found["reference"], free["reference"])
    assert (found["latents"] - free["latents"]).norm() > 1e-3 * free["latents"].norm()
    for losses in record(run)["losses"]:
        assert len(losses) == 3 and losses[0] > losses[1] > losses[2]
    assert (run / "embedding.safetensors").exists() == (optimise == "embedding")
    result = read_clip(run / "result.mp4", frames=9, size=None)
    assert result.frames.shape == (9, 32, 48, 3) and result.frame_rate == 10


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_transfers(transfer, kind):
    run = transfer(kind=kind)
    for losses in record(run)["losses"]:
        assert len(losses) == 2 and losses[-1] < losses[0]
    assert read_clip(run / "result.mp4", frames=9, size=None).frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_transfer_from_the_noised_clip(transfer, kind):
    run, clean = (transfer(*words, kind=kind) for words in (NOISED, NOISED[2:]))
    assert len(record(run)["steps"]) == 6
    for losses in record(run)["losses"]:
        assert len(losses) == 2 and losses[-1] < losses[0]
    assert (latents(run) - latents(clean)).norm() > 1e-3 * latents(clean).norm()


def test_transfer_without_a_backward_pass(transfer, free):
    run = transfer("--loss", "x0", "--optimisation-steps", "3")
    assert (latents(run) - free["latents"]).norm() > 1e-3 * free["latents"].norm()
    first, *others = record(run)["losses"]
    assert len(first) == 3  # at its level, all noise, the video and the noised clip are the same
    for losses in others:
        assert len(losses) == 3 and losses[-1] < losses[0]


@pytest.mark.parametrize("frames", [6, 8])
def test_any_number_of_frames_comes_back(transfer, frames):
    run = transfer("--frames", frames)
    assert latents(run).shape[1] == 3
    assert len(read_clip(run / "result.mp4", frames=frames, size=None).frames) == frames


@pytest.mark.parametrize(
    "words",
    [
        ("--weights", "int8"),
        ("--weights", "fp8"),
        ("--compute", "int8"),
        ("--compute", "int8-forward"),
        ("--dtype", "bfloat16"),
        ("--scheduler", "euler"),
        ("--negative", "alternate"),
        ("--step-cache", "1"),
        ("--gradients", "1"),
        ("--speed", "faster"),
    ],
    ids=" ".join,
)
def test_other_choices_change_the_result_a_little(transfer, resident, words):
    assert 0 < (latents(transfer(*words)) - resident).norm() < 0.5 * resident.norm()


def test_transformer_from_a_gguf_file(transfer, resident, wan_folders, tmp_path):
    network = WanTransformer3DModel.from_pretrained(wan_folders() / "transformer")
    write_gguf(tmp_path / "model.gguf", network.requires_grad_(False), Kind.Q8_0)
    found = latents(transfer("--weights", tmp_path / "model.gguf"))
    assert 0 < (found - resident).norm() < 0.5 * resident.norm()


def test_a_lora_changes_the_result(transfer, resident, tmp_path):
    name = "diffusion_model.blocks.1.self_attn.q"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 32), f"{name}.lora_B.weight": torch.ones(32, 1)}
    save_file(tensors, tmp_path / "lora.safetensors")
    found = latents(transfer("--lora", f"{tmp_path / 'lora.safetensors'}:0.05"))
    assert 0 < (found - resident).norm() < 0.5 * resident.norm()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_the_same_latents(transfer, resident, name, monkeypatch):
    walked, walk = [], Streamed.walk

    def watched(self, order):
        walked.append(len(self.blocks))
        return walk(self, order)

    monkeypatch.setattr(Streamed, "walk", watched)
    least = {"none": 3}
    monkeypatch.setattr(plan, "_resident_blocks", lambda phases, preset, *_: least.get(preset.checkpoint, 0))
    run = transfer("--memory", name)
    torch.testing.assert_close(latents(run), resident, rtol=1e-5, atol=1e-5)
    assert DEPTH in walked, "the transformer was not streamed"
    assert read_settings(run / "settings.yaml").preset == name


@pytest.mark.parametrize("words", [(), NOISED], ids=" ".join)
def test_inject_uses_the_embedding_of_another_run(ditflow, transfer, tmp_path, words):
    origin = transfer("--optimise", "embedding", "--keep-precision", *words)
    run = tmp_path / ditflow("inject", "--from", origin, "--prompt", PROMPT, "--quiet").strip()
    torch.testing.assert_close(latents(run), latents(origin), rtol=1e-4, atol=1e-4)
    other = tmp_path / ditflow("inject", "--from", origin, "--prompt", "blue", "--quiet").strip()
    assert (latents(other) - latents(origin)).norm() > 1e-3 * latents(origin).norm()


@pytest.mark.parametrize(
    "words",
    [(), ("--optimise", "embedding"), ("--speed", "faster"), ("--loss", "x0"), NOISED],
    ids=" ".join,
)
def test_resume_after_a_kill(ditflow, transfer, clip, wan_folders, fork_server, tmp_path, monkeypatch, words):
    """In a guided step, which the next one goes on from; then after an interrupt in a plain one."""
    words = (*words, "--output", "run")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    transfer(*words)
    monkeypatch.chdir(tmp_path)
    given = ("--model", str(wan_folders()), "--video", str(clip), "--prompt", PROMPT, *QUICK, *words)
    code = fork_server.run(tmp_path, "transfer", *given, first=["wan_runs:kill_in_step", 2])
    assert code == -signal.SIGKILL, fork_server.error(tmp_path)
    run = tmp_path / "run"
    assert (run / "state" / "step.safetensors").exists() and not (run / "run.json").exists()

    with interrupted_in(5, WanSchedule, monkeypatch):
        code, error = ditflow("resume", "run", "--quiet", fails=True)
    assert code == 130 and "`ditflow resume run` continues from there" in error
    ditflow("resume", "run", "--quiet")
    assert record(run)["resumed"]
    assert contents(run) == contents(tmp_path / "whole" / "run")


def test_decode_in_tiles_makes_the_video_again(ditflow, transfer):
    run = transfer("--format", "frames")
    result = run / "result"
    before = read_clip(result, frames=9, size=None).frames
    shutil.rmtree(result)
    shutil.rmtree(run / "comparison")
    ditflow("decode", run, "--quiet", "--memory", "4gb")
    after = read_clip(result, frames=9, size=None).frames
    assert np.abs(after.astype(int) - before).max() <= 1
    assert before.std() > 5


def test_plan_counts_the_models_own_work(ditflow, wan_folders):
    words = ("plan", "--model", wan_folders(), "--frames", 9, "--size", "48x32", "--dtype", "float32")
    found = json.loads(ditflow(*words, "--guidance-blocks", "2", "--json"))
    tokens, channels, hidden = 3 * 4 * 6, 32, 64
    # each block: queries times keys, and their softmax times values, over the video and over the text
    attention = DEPTH * 4 * tokens * (tokens + 512) * channels
    products = DEPTH * 2 * channels * (tokens * (4 + 2) * channels + 512 * 2 * channels + tokens * 2 * hidden)
    phases = {preset["name"]: {p["name"]: p for p in preset["phases"]} for preset in found["presets"]}
    for name in PRESETS:
        denoise = phases[name]["denoise"]
        assert denoise["attention_flops"] == 2 * attention  # with the prompt and without it
        assert 2 * (attention + products) < denoise["flops"] < 2.6 * (attention + products)
    assert phases["4gb"]["optimise"]["peak_bytes"] < phases["80gb"]["optimise"]["peak_bytes"]


def test_flow_evaluate_and_report(ditflow, transfer, clip, wan_folders, tmp_path):
    run = transfer("--guidance-blocks", "1", "3")
    (found,) = json.loads(ditflow("evaluate", run, "--json", "--clip", "none", "--quiet"))["evaluations"]
    assert found["amf_distance"].keys() == {"1", "3"} and min(found["amf_distance"].values()) > 0
    ditflow("report", run)
    page = (tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.S)[1])
    assert (data["clips"][0]["frames"], data["flow"][0]["frames"]) == (9, 3)
    words = ("--model", wan_folders(), "--video", clip, "--frames", 9, "--size", "48x32", "--device", "cpu")
    flow = tmp_path / ditflow("flow", *words, "--dtype", "float32", "--blocks", "all", "--quiet").strip()
    assert len(json.loads((flow / "blocks.json").read_text())["references"]) >= 1
