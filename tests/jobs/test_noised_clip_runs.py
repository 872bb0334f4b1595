"""Runs that read the clip anew in each guided step and start from it, through the command line."""

import json
from functools import partial

import pytest
import torch
from quick_runs import PROMPT, interrupted_in, latents, record, written
from run_processes import contents
from safetensors.torch import load_file

from ditflow.models.cogvideox.schedule import CogVideoXSchedule

NOISED = ("--reference-noise", "step", "--initial-latents", "clip:0.6")  # 6 of the 10 steps, 3 guided


@pytest.fixture
def transfer(transfer, clip):
    return partial(transfer, "--video", clip, "--steps", 10)


@pytest.mark.parametrize("loss", ["flow", "moft", "smm", "smm-release"])
def test_transfer(transfer, loss):
    words = ("--loss", loss, "--moft-channels", 0.5, "--learning-rate", 0.01, 0.01)
    run, clean = (transfer(*words, *noise) for noise in (NOISED, NOISED[2:]))
    assert [len(losses) for losses in record(run)["losses"]] == [2] * 3
    assert all(losses[1] < losses[0] for losses in record(run)["losses"])
    assert [step["loss"] for step in record(run)["steps"]] == [loss] * 3 + [None] * 3
    assert (latents(run) - latents(clean)).norm() > 1e-3 * latents(clean).norm()


def test_the_settings_of_a_run_repeat_it(ditflow, transfer, tmp_path):
    run = transfer(*NOISED)
    assert (written(run)["reference_noise"], written(run)["initial_latents"]) == ("step", "clip:0.6")
    again = tmp_path / ditflow("transfer", "--config", run / "settings.yaml", "--quiet").strip()
    assert torch.equal(latents(again), latents(run))


def test_a_low_strength_stays_near_the_clip(transfer):
    runs = [transfer("--initial-latents", start) for start in ("clip:0.2", "clip:0.6", "noise")]
    reference = load_file(runs[0] / "latents.safetensors")["reference"]
    near, further, free = ((latents(run) - reference).norm() for run in runs)
    assert near < further < free
    assert [len(record(run)["steps"]) for run in runs] == [2, 6, 10]


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize(
    "words", [("--scheduler", "dpm"), ("--scheduler", "ddim", "--optimise", "embedding")]
)
def test_resume_after_an_interruption(ditflow, transfer, tmp_path, monkeypatch, words, at):
    """In a guided step, and in a later one."""
    words = (*NOISED, *words, "--output", "run")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    transfer(*words)
    monkeypatch.chdir(tmp_path)
    interrupted = interrupted_in(at, CogVideoXSchedule, monkeypatch)
    with interrupted, pytest.raises(AssertionError, match="continues from there"):
        transfer(*words)
    ditflow("resume", "run", "--quiet")
    assert record(tmp_path / "run")["resumed"]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole" / "run")


def test_inject_starts_as_the_other_run_did(ditflow, transfer, tmp_path):
    """Its embedding holds what was read of the clip: nothing is read again."""
    origin = transfer(*NOISED, "--optimise", "embedding", "--keep-precision")
    inject = ("inject", "--from", origin, "--prompt", PROMPT, "--quiet")
    run = tmp_path / ditflow(*inject).strip()
    assert torch.equal(latents(run), latents(origin))
    assert (written(run)["reference_noise"], written(run)["initial_latents"]) == ("clean", "clip:0.6")
    code, error = ditflow(*inject, "--initial-latents", "noise", fails=True)
    assert code == 1 and "made with timesteps" in error
    code, error = ditflow(*inject, "--reference-noise", "step", fails=True)
    assert code == 2 and "nothing is optimised towards the clip's motion" in error


@pytest.mark.parametrize(
    "words, message",
    [
        (("--initial-latents", "clip"), "accepted: noise, or clip:STRENGTH"),
        (("--initial-latents", "clip:0"), "accepted: noise, or clip:STRENGTH"),
        (("--initial-latents", "clip:2"), "accepted: noise, or clip:STRENGTH"),
        (("--initial-latents", "clip:0.05"), "makes none of the 10 steps"),
        (("--reference-noise", "noisy"), "accepted: clean, step"),
        (("--reference-noise", "step", "--no-guidance"), "leave out --reference-noise"),
        (("--reference-noise", "step", "--loss", "x0"), "leave out --reference-noise"),
    ],
    ids=" ".join,
)
def test_refusals(transfer, words, message):
    code, error = transfer(*words, fails=True)
    assert code == 2 and error.startswith("ditflow: ") and error.count("\n") == 1
    assert message in error


def test_other_commands_take_such_a_run(ditflow, transfer, tmp_path):
    run = transfer(*NOISED)
    (found,) = json.loads(ditflow("evaluate", run, "--json", "--clip", "none", "--quiet"))["evaluations"]
    assert found["amf_distance"].keys() == {"2"}
    ditflow("report", run)
    config = ("--config", run / "settings.yaml", "--quiet")
    flow = ditflow("flow", *config).strip()
    # not a timestep of the steps that were made
    blocks = ditflow("flow", *config, "--output", "blocks", "--blocks", "all", "--timestep", 0, 900).strip()
    plain = ditflow("flow", *config, "--set", "initial_latents=noise", "--output", "plain",
                    "--blocks", "all", "--timestep", 0, 900).strip()  # fmt: skip
    assert load_file(tmp_path / flow / "flow.safetensors").keys() == {"block_2"}
    assert (tmp_path / blocks / "blocks.json").read_text() == (tmp_path / plain / "blocks.json").read_text()


def test_plan(ditflow, small_folder):
    words = ("plan", "--model", small_folder, "--steps", 10, "--guided", 0.5, "--guidance-blocks", 2)
    words += ("--frames", 10, "--size", "48x32")
    for preset in json.loads(ditflow(*words, *NOISED, "--json"))["presets"]:
        times = {phase["name"]: phase["times"] for phase in preset["phases"]}
        assert (times["reference"], times["injection"], times["denoise"]) == (3, 3, 6)
