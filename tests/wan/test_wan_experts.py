"""A model with two transformers: which steps each runs, and that only one is loaded at a time."""

import gc
import json
import weakref

import pytest
import torch
from diffusers import WanTransformer3DModel
from run_processes import contents
from wan_runs import stop_in_step

from ditflow.models.experts import ONE, Expert, expert_stops
from ditflow.models.wan.schedule import WanSchedule
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings

KIND = "wan-a14b"
TWO = (Expert("transformer", 0.875), Expert("transformer_2", 0.0))


def test_steps_belong_to_the_expert_of_their_noise():
    assert expert_stops(TWO, [999, 900, 875, 874, 100], 1000) == [3, 5]
    assert expert_stops(TWO, [999, 900], 1000) == [2, 2]
    assert expert_stops(ONE, [999, 100], 1000) == [2]


@pytest.fixture
def loads(monkeypatch):
    """The folders that transformers are loaded from, each with how many were then alive."""
    found, alive, load = [], weakref.WeakSet(), WanTransformer3DModel.from_pretrained.__func__

    def watched(kind, folder, **options):
        gc.collect()
        found.append((folder.name, len(alive)))
        network = load(kind, folder, **options)
        alive.add(network)
        return network

    monkeypatch.setattr(WanTransformer3DModel, "from_pretrained", classmethod(watched))
    return found


@pytest.mark.parametrize("words", [(), ("--step-cache", "1", "--negative", "alternate")], ids=" ".join)
def test_only_the_expert_in_use_is_loaded(transfer, loads, words):
    transfer(*words, kind=KIND)
    assert loads == [("transformer", 0), ("transformer_2", 0)]


def test_a_run_from_the_clip_loads_only_what_its_steps_need(transfer, loads):
    run = transfer("--initial-latents", "clip:0.5", "--reference-noise", "step", kind=KIND)
    assert loads == [("transformer_2", 0)]
    losses = json.loads((run / "run.json").read_text())["losses"]
    assert len(losses) == 2 and all(each[-1] < each[0] for each in losses)


def test_each_expert_that_is_guided_reads_the_clip(transfer, monkeypatch):
    prepared, prepare = [], Denoising._prepare

    def watched(self, *given):
        prepared.append(self.expert)
        return prepare(self, *given)

    monkeypatch.setattr(Denoising, "_prepare", watched)
    run = transfer("--guided", "1", kind=KIND)
    assert prepared == [0, 1]
    losses = json.loads((run / "run.json").read_text())["losses"]
    assert len(losses) == 6 and all(each[-1] < each[0] for each in losses)


def test_a_folder_with_two_transformers_has_the_published_guidance_scales(wan_folders):
    assert Settings(model=str(wan_folders(KIND))).guidance_scale == (4, 3)
    assert len(Settings(model=str(wan_folders())).guidance_scale) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("--guidance-scale", "4", "1"),
        ("--guidance-scale", "4", "2", "--negative-below", "3"),
        ("--guidance-scale", "1", "4", "--guided", "0.5"),
        ("--negative", "alternate"),
    ],
    ids=" ".join,
)
def test_each_expert_has_its_guidance_scale_in_a_run_and_in_its_plan(ditflow, transfer, wan_folders, words):
    words = ("--steps", "8", "--guided", "0", *words)
    run = transfer(*words, kind=KIND)
    steps = json.loads((run / "run.json").read_text())["steps"]
    scales = [step["guidance_scale"] for step in steps]
    if "--guidance-scale" in words:
        given = words[words.index("--guidance-scale") + 1 :]
        assert scales == [float(given[0])] * boundary(8) + [float(given[1])] * (8 - boundary(8))
    found = json.loads(ditflow("plan", "--config", run / "settings.yaml", "--memory", "8gb", "--json"))
    (preset,) = (preset for preset in found["presets"] if preset["name"] == "8gb")
    times = {phase["name"]: phase["times"] for phase in preset["phases"]}
    alone = sum(step["negative"] != "run" for step in steps)
    assert 0 < alone < 8 and (times["denoise"], times["prompt only"]) == (8 - alone, alone)


RESUMED = {  # words, and the steps (from 0) that are interrupted: the second expert has those from 2 on
    "last of the first": (("--guided", "1"), 1),
    "first of the second": (("--guided", "1"), 2),
    "later, with differences kept": (("--step-cache", "1"), 3),
    "two guidance scales": (("--guidance-scale", "4", "3", "--speed", "fast"), 2),
}


@pytest.mark.parametrize("words, at", RESUMED.values(), ids=RESUMED)
def test_resume_on_either_side_of_the_boundary(ditflow, transfer, tmp_path, monkeypatch, loads, words, at):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    folder = transfer(*words, "--output", "run", kind=KIND).name
    monkeypatch.chdir(tmp_path)
    stop_in_step(at, monkeypatch, lambda: transfer(*words, "--output", "run", kind=KIND))
    loads.clear()
    ditflow("resume", folder, "--quiet")
    assert [name for name, _ in loads] == ["transformer", "transformer_2"][at >= boundary() :]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole" / "run")


def boundary(steps=6):
    """The number of steps of the first expert, in these runs with a shift of 3."""
    config = {"num_train_timesteps": 1000, "flow_shift": 3.0}
    schedule = WanSchedule("unipc", config, steps, (48, 32), torch.device("cpu"), torch.Generator())
    first, last = expert_stops(TWO, schedule.timesteps, 1000)
    assert 1 < first < 4 and last == steps
    return first


def test_plan_says_that_there_are_two(ditflow, wan_folders):
    words = ("--frames", 9, "--size", "48x32", "--guidance-blocks", "2")
    assert "two transformers" in ditflow("plan", "--model", wan_folders(KIND), *words)
    assert "two transformers" not in ditflow("plan", "--model", wan_folders(), *words)


def test_both_experts_belong_to_a_run(ditflow, transfer, wan_folders, monkeypatch):
    """A run whose second expert has changed is not resumed."""
    stop_in_step(1, monkeypatch, lambda: transfer("--output", "run", kind=KIND))
    weights = wan_folders(KIND) / "transformer_2" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + bytes(4))
        code, error = ditflow("resume", "run", "--quiet", fails=True)
    finally:
        weights.write_bytes(before)
    assert code == 1 and "weights" in error
