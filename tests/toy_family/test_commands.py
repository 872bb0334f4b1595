"""Every command on the toy, through the command line."""

import json
import re
import shutil
import signal
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from quick_runs import GUIDED_WAYS, interrupted_in, latents, record
from repository import ROOT
from run_processes import contents
from safetensors.torch import load_file

from ditflow.cli.main import main
from ditflow.jobs.device import choose_device
from ditflow.memory.presets import PRESETS, presets
from ditflow.memory.streamed import Streamed
from ditflow.planning import plan
from ditflow.settings import read_settings
from ditflow.video import read_clip
from toy_family.conftest import PROMPT
from toy_family.family import ToyFamily
from toy_family.schedule import ToySchedule

DEPTH, FRAMES, LATENT_FRAMES, TOKENS, TEXT, CHANNELS = 5, 9, 3, 8 * 6 * 3, 20, 24


@pytest.fixture(scope="module")
def made(clip, toy_folder, tmp_path_factory):
    """Runs a transfer in a folder of its own, once for all tests; returns its tensors."""

    def run(*words):
        folder = tmp_path_factory.mktemp("made") / "run"
        given = ("--model", str(toy_folder), "--video", str(clip), "--prompt", PROMPT, "--device", "cpu")
        assert main(["transfer", *given, *words, "--output", str(folder)]) == 0
        return load_file(folder / "latents.safetensors")

    return run


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
    run = transfer("--loss", loss, "--optimise", optimise, injection, "--optimisation-steps", "3")
    found = load_file(run / "latents.safetensors")
    assert found["latents"].shape == (1, LATENT_FRAMES, 6, 8, 12)
    assert torch.equal(found["reference"], free["reference"])
    assert (found["latents"] - free["latents"]).norm() > 1e-3 * free["latents"].norm()
    for losses in record(run)["losses"]:
        assert len(losses) == 3 and losses[-1] < losses[0]
    assert (run / "embedding.safetensors").exists() == (optimise == "embedding")
    result = read_clip(run / "result.mp4", frames=FRAMES, size=None)
    assert result.frames.shape == (FRAMES, 32, 48, 3) and result.frame_rate == 10


@pytest.mark.parametrize("injection", ["--injection", "--no-injection"])
def test_transfer_without_a_backward_pass(transfer, free, injection):
    """In a run that guides block 0 and injects into it: the loss x0 reads no block."""
    words = (injection, "--guidance-blocks", "0", "--optimisation-steps", "3")
    run = transfer("--loss", "x0", *words)
    found = latents(run)
    assert (found - free["latents"]).norm() > 1e-3 * free["latents"].norm()
    for losses in record(run)["losses"]:
        assert len(losses) == 3 and losses[-1] < losses[0]
    settings = read_settings(run / "settings.yaml")
    assert settings.loss == "x0"
    assert torch.equal(latents(transfer("--config", run / "settings.yaml")), found)


def test_injection_alone(transfer, free):
    run = transfer("--no-guidance")
    assert record(run)["losses"] == []
    assert (latents(run) - free["latents"]).norm() > 1e-3 * free["latents"].norm()


@pytest.mark.parametrize("words", [("--weights", "int8"), ("--dtype", "bfloat16"), ("--scheduler", "euler")])
def test_other_choices_change_the_result_a_little(transfer, resident, words):
    assert 0 < (latents(transfer(*words)) - resident).norm() < 0.5 * resident.norm()


def test_inject_uses_the_embedding_of_another_run(ditflow, transfer, tmp_path):
    origin = transfer("--optimise", "embedding", "--keep-precision")
    run = tmp_path / ditflow("inject", "--from", origin, "--prompt", PROMPT, "--quiet").strip()
    torch.testing.assert_close(latents(run), latents(origin), rtol=1e-4, atol=1e-4)
    assert record(run)["losses"] == []
    other = tmp_path / ditflow("inject", "--from", origin, "--prompt", "blue", "--quiet").strip()
    assert (latents(other) - latents(origin)).norm() > 1e-3 * latents(origin).norm()
    code, error = ditflow("inject", "--from", origin, "--prompt", "blue", "--steps", 7, fails=True)
    assert code == 1 and "made with timesteps [1000.0, " in error


def test_plan_of_a_run_without_a_backward_pass(ditflow, toy_folder):
    found = json.loads(ditflow("plan", "--model", toy_folder, "--loss", "x0", "--json"))
    for preset in found["presets"]:
        phases = {phase["name"]: phase for phase in preset["phases"]}
        assert (phases["x0 reference"]["times"], phases["x0 optimise"]["times"]) == (3, 3 * 2)
        # one forward: a denoising step takes two, with the prompt and without it
        for name in ("x0 reference", "x0 optimise"):
            assert 2 * phases[name]["flops"] == phases["denoise"]["flops"]


def test_plan_counts_the_toys_own_work(ditflow, toy_folder):
    words = ("--model", toy_folder, "--json")
    found = json.loads(ditflow("plan", *words))
    assert [preset["name"] for preset in found["presets"]] == list(PRESETS)
    presets = {preset["name"]: preset for preset in found["presets"]}
    phases = {name: {p["name"]: p for p in preset["phases"]} for name, preset in presets.items()}
    # each block: queries times keys, and their softmax times values, over the video and over the text
    attention = DEPTH * 4 * TOKENS * (TOKENS + TEXT) * CHANNELS
    products = DEPTH * 2 * CHANNELS**2 * (TOKENS * (4 + 2 + 8) + TEXT * 2)
    for name in PRESETS:
        denoise = phases[name]["denoise"]
        assert denoise["times"] == 6 and phases[name]["optimise"]["times"] == 3 * 2
        assert denoise["attention_flops"] == 2 * attention  # with the prompt and without it
        assert 2 * (attention + products) < denoise["flops"] < 2.2 * (attention + products)
        assert presets[name]["resident_blocks"] + presets[name]["streamed_blocks"] == DEPTH
    assert phases["4gb"]["optimise"]["peak_bytes"] < phases["80gb"]["optimise"]["peak_bytes"]
    assert phases["4gb"]["optimise"]["flops"] > phases["80gb"]["optimise"]["flops"]
    assert "fits" in ditflow("plan", *words[:2])


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
    settings = read_settings(run / "settings.yaml")
    assert settings.preset == name
    place = presets()[PRESETS.index(name)].decode_tile  # in a table of five; the toy has three
    assert settings.decode_tile == ("none" if place is None else ToyFamily.tiles[min(place, 2)])


def test_transfer_and_plan_of_a_run_with_two_losses(ditflow, transfer, toy_folder):
    words = ("--loss", "smm", "--x0-after", "0.34", "--optimisation-steps", "3")
    run = transfer(*words)
    assert [step["loss"] for step in record(run)["steps"]] == ["smm", "x0", "x0", None, None, None]
    for losses in record(run)["losses"]:
        assert len(losses) == 3 and losses[-1] < losses[0]
    assert torch.equal(latents(transfer("--config", run / "settings.yaml")), latents(run))
    for preset in json.loads(ditflow("plan", "--model", toy_folder, *words, "--json"))["presets"]:
        times = {phase["name"]: phase["times"] for phase in preset["phases"]}
        assert (times["reference"], times["optimise"]) == (1, 3)
        assert (times["x0 reference"], times["x0 optimise"]) == (2, 2 * 3)


@pytest.mark.parametrize(
    "words",
    [
        ("--optimise", "embedding"),
        ("--loss", "x0"),
        ("--x0-after", "0.34"),
        ("--reference-noise", "step", "--initial-latents", "clip:0.6", "--steps", "10"),  # makes 6 steps
    ],
    ids=" ".join,
)
def test_resume_after_a_kill(ditflow, transfer, clip, toy_folder, fork_server, tmp_path, monkeypatch, words):
    """In a guided step, which the next one goes on from; then after an interrupt in a plain one."""
    words = (*words, "--output", "run")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    transfer(*words)
    monkeypatch.chdir(tmp_path)
    given = ("--model", str(toy_folder), "--video", str(clip), "--prompt", PROMPT, "--device", "cpu", *words)
    code = fork_server.run(
        tmp_path, "transfer", *given, "--quiet", first=["toy_family.killed:kill_in_step", 2]
    )
    assert code == -signal.SIGKILL, fork_server.error(tmp_path)
    run = tmp_path / "run"
    assert (run / "state" / "step.safetensors").exists() and not (run / "run.json").exists()

    with interrupted_in(5, ToySchedule, monkeypatch):
        code, error = ditflow("resume", "run", "--quiet", fails=True)
    assert code == 130 and "`ditflow resume run` continues from there" in error
    ditflow("resume", "run", "--quiet")
    assert record(run)["resumed"]
    assert contents(run) == contents(tmp_path / "whole" / "run")


def test_decode_in_tiles_makes_the_video_again(ditflow, transfer):
    run = transfer("--format", "frames")
    result = run / "result"
    before = read_clip(result, frames=FRAMES, size=None).frames
    shutil.rmtree(result)
    shutil.rmtree(run / "comparison")
    ditflow("decode", run, "--quiet", "--memory", "4gb")
    assert read_settings(run / "settings.yaml").decode_tile == "16x8"
    after = read_clip(result, frames=FRAMES, size=None).frames
    assert np.abs(after.astype(int) - before).max() <= 1  # sums of other order round the other way
    assert before.std() > 10


def test_evaluate_and_report(ditflow, transfer, tmp_path):
    run = transfer("--guidance-blocks", "1", "3")
    (found,) = json.loads(ditflow("evaluate", run, "--json", "--clip", "none", "--quiet"))["evaluations"]
    assert found["amf_distance"].keys() == {"1", "3"} and min(found["amf_distance"].values()) > 0
    assert -1 <= found["motion"]["score"] <= 1

    ditflow("report", run)
    page = (tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.S)[1])
    (flow,), (clip,) = data["flow"], data["clips"]
    assert (clip["frames"], flow["frames"], flow["height"], flow["width"]) == (FRAMES, LATENT_FRAMES, 8, 6)
    assert flow["blocks"].keys() == {"1", "3"}
    for name, distance in found["amf_distance"].items():
        assert flow["blocks"][name]["distance"] == distance


def test_frames_and_rate_are_the_familys(ditflow, clip, toy_folder, tmp_path):
    """Six frames come back as six, and images without a rate play at the family's."""
    (tmp_path / "images").mkdir()
    for index, frame in enumerate(read_clip(clip, frames=6, size=None).frames):
        Image.fromarray(frame).save(tmp_path / "images" / f"{index}.png")
    words = ("--model", toy_folder, "--video", "images", "--frames", 6, "--device", "cpu", "--quiet")
    run = tmp_path / ditflow("transfer", *words, "--prompt", PROMPT).strip()
    assert latents(run).shape[1] == 3
    result = read_clip(run / "result.mp4", frames=6, size=None)
    assert len(result.frames) == 6 and result.frame_rate == Fraction(12)


@pytest.mark.parametrize(
    "words, says",
    [
        ("--size 44x32", "size: 44x32 given, multiples of 8 accepted; nearest: 48x32"),
        ("--frames 4", "frames: 4 given, at least 5 accepted"),
        ("--scheduler ddim", "scheduler: 'ddim' given, accepted: adams, euler"),
        ("--set decode_tile=360x240", "given, accepted: auto, none, 32x24, 24x16, 16x8"),
        (
            "--dynamic-scale",
            "dynamic_scale: ToyPipeline has no dynamic guidance scale; use --no-dynamic-scale",
        ),
        ("--guidance-blocks 5", "guidance_blocks: block 5 given, this model has blocks 0 to 4"),
        ("--lora OWNER/NAME", "lora: ToyPipeline does not take LoRAs; leave out --lora"),
    ],
)
def test_wrong_values_are_refused_with_what_is_accepted(ditflow, clip, toy_folder, tmp_path, words, says):
    given = ("--model", toy_folder, "--video", clip, "--prompt", PROMPT, "--output", "run")
    code, error = ditflow("transfer", *given, *words.split(), fails=True)
    assert code in (1, 2) and says in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_unknown_family_is_refused(ditflow, clip, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    for command in ("transfer", "flow", "plan"):
        words = () if command == "plan" else ("--video", clip, "--output", "run")
        code, error = ditflow(command, "--model", "model", *words, fails=True)
        assert code == 2 and "'NoSuchPipeline'" in error and error.count("\n") == 1
        assert "accepted: CogVideoXPipeline, WanPipeline, ToyPipeline" in error
    assert not (tmp_path / "run").exists()


def test_a_small_model_computes_on_a_cpu_by_itself(toy_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(read_settings(model=str(toy_folder), device="auto")) == torch.device("cpu")


def test_no_file_of_the_program_knows_the_toy():
    folders = ("ditflow", "kernels", "configs", "bench", "profiles")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    read = [path for path in files if path.suffix in (".py", ".yaml", ".html", ".js")]
    assert len(read) > 150
    assert not [path for path in read if re.search(r"\btoy|Toy", path.read_text(encoding="utf-8"))]
