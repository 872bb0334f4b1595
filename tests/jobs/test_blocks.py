"""`ditflow flow --blocks`: what it finds on the shipped models, its files, and every way to run it."""

import json
import logging
import re
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ditflow import flow, video
from ditflow.cli.main import main
from ditflow.guidance import targets
from ditflow.jobs import blocks as job
from ditflow.jobs.blocks import compare_blocks
from ditflow.jobs.opening import begin_job
from ditflow.memory.plain import PlainRunner
from ditflow.memory.streamed import Streamed
from ditflow.optical_flow.tokens import token_flow
from ditflow.planning import choice, plan
from ditflow.progress import Progress
from ditflow.settings import Settings, read_settings
from ditflow.small.clips import main as write_made_clip

DEPTH = 6


def command(settings):
    """The words of `ditflow flow` on the fixture's clip and model, in that model's precision."""
    size = ["--size", "48x32", "--frames", "10", "--dtype", "float32", "--set", "negative_prompt="]
    return ["flow", "--video", settings.video, "--model", settings.model, *size]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Writes a made clip; returns its path."""

    def write(seed):
        path = tmp_path_factory.mktemp("made") / "clip.mp4"
        assert write_made_clip([str(path), "--seed", str(seed)]) == 0
        return str(path)

    return write


@pytest.fixture(scope="module")
def compared(made, tmp_path_factory):
    """The folder and the comparison of a made clip in the shipped `small`, at two noise levels."""
    output = str(tmp_path_factory.mktemp("compared") / "run")
    run, comparison = compare_blocks(Settings(video=made(5), model="small", output=output), None, [500, 0])
    return run.folder, comparison


@pytest.mark.parametrize("model, blocks, seed", [("small", {4}, 1), ("small-sincos", {4, 5}, 7)])
def test_the_shipped_models_are_guided_where_they_see_motion(model, blocks, seed, made, tmp_path):
    """One of the blocks of the model's config, and the one that the true motion says too."""
    settings = Settings(video=made(seed), model=model, output=str(tmp_path / "run"))
    assert set(settings.guidance_blocks) == blocks
    _, found = compare_blocks(settings)
    assert found.choice.block in blocks
    by_truth = found.references[job.TRUE]
    assert found.choice.block == max(by_truth.blocks, key=by_truth.mean)
    chosen = found.references[job.MEASURED].blocks[found.choice.block][0]
    assert chosen.correlation > 0.65 and chosen.agreement > 0.55
    assert by_truth.blocks[found.choice.block][0].correlation > 0.8


def test_small_sees_what_its_readme_says(compared):
    """Block 4 follows the shape over a still background, 5 moves the background, 0 points anywhere."""
    measured, true = (compared[1].references[name] for name in (job.MEASURED, job.TRUE))
    for found in (measured, true):
        clean = {block: scores[0] for block, scores in found.blocks.items()}
        assert clean[4].correlation > clean[5].correlation > clean[2].correlation
        assert clean[4].stray < 0.25 < clean[5].stray < 0.9 < clean[0].stray
        assert max(abs(clean[block].correlation) for block in (2, 3)) < 0.2
        assert max(found.blocks, key=found.mean) == 4
    noisy = measured.blocks[5][1]
    assert noisy.stray > 0.9 and noisy.correlation < measured.blocks[5][0].correlation - 0.2
    assert measured.compared < true.compared == 1 and 0.05 < true.moving < measured.moving < 0.2


def test_files(compared):
    folder, comparison = compared
    assert {path.name for path in folder.iterdir()} == {
        "reference.mp4", "blocks.json", "blocks.png", "settings.yaml", "run.json"
    }  # fmt: skip
    found = json.loads((folder / "blocks.json").read_text())
    assert (found["block"], found["why"]) == (4, comparison.choice.why)
    assert found["references"].keys() == {"optical flow", "true motion"}
    for name, reference in found["references"].items():
        assert reference["blocks"].keys() == set("012345")
        for block, entry in reference["blocks"].items():
            assert [level["timestep"] for level in entry["levels"]] == [0, 500]
            levels = [level["agreement"] * (1 - level["stray"]) for level in entry["levels"]]
            assert entry["score"] == pytest.approx(np.mean(levels))
            assert entry["score"] == pytest.approx(comparison.references[name].mean(int(block)))
    assert Image.open(folder / "blocks.png").size[0] > 500
    assert list(json.loads((folder / "run.json").read_text())["phases"]) == [
        "text", "encode", "flow", "optical flow"
    ]  # fmt: skip
    text = comparison.as_text()
    assert text.splitlines()[-1].startswith("guide block 4: its score, 0.")
    row = next(line for line in text.splitlines() if line.startswith("|     4 |"))
    clean, noisy = comparison.references[job.MEASURED].blocks[4]
    numbers = [value for each in (clean, noisy) for value in (each.correlation, each.agreement, each.stray)]
    assert [float(cell) for cell in row.split("|")[2:8]] == [round(value, 2) for value in numbers]


def test_each_block_is_read_as_flow_reads_it(settings, monkeypatch):
    """One forward a noise level; in the clean clip bit for bit what `flow` writes of each block.

    The clip is noised as injection noises it: with the schedule, and a run's initial noise.
    """
    read, walks, walk = [], [], PlainRunner.walk

    def recorded(runner, settings, blocks, latents, prompt, timestep):
        before = len(walks)
        flows = targets.clip_flows(runner, settings, blocks, latents, prompt, timestep)
        assert len(walks) == before + 1  # one walk through the blocks
        read.append((latents, timestep, flows))
        return flows

    monkeypatch.setattr(job, "clip_flows", recorded)
    monkeypatch.setattr(PlainRunner, "walk", lambda *given: walks.append(1) or walk(*given))
    compare_blocks(replace(settings, seed=3), [0, 3, 1], [300, 0])
    (clean, zero, flows), (noised, level, noisy) = read
    assert list(flows) == list(noisy) == [0, 1, 3]
    assert (zero.item(), level.item(), level.dtype) == (0, 300, torch.int64)
    with begin_job(replace(settings, seed=3), Progress(), needs=(), kind="flow") as reading:
        schedule = reading.schedule()
    noise = schedule.initial_noise(tuple(clean.shape))
    assert torch.equal(noised, schedule.add_noise(clean, noise, level))
    written = load_file(flow(replace(settings, guidance_blocks=[1, 3])).folder / "flow.safetensors")
    for block in (1, 3):
        assert torch.equal(written[f"block_{block}"], flows[block])
        assert not torch.equal(written[f"block_{block}"], noisy[block])


@pytest.fixture(scope="module")
def expected():
    """Holds the comparison of a plain run, once a test has made it."""
    return {}


@pytest.mark.parametrize("name", ["4gb", "12gb", "16gb", "24gb"])  # one of each kind
def test_every_runner_reads_the_same(settings, expected, name, monkeypatch):
    walked, walk = [], Streamed.walk

    def watched(self, order):
        walked.append(len(self.blocks))
        return walk(self, order)

    monkeypatch.setattr(Streamed, "walk", watched)
    if "plain" not in expected:
        expected["plain"] = compare_blocks(settings)[1].as_mapping()
    monkeypatch.setattr(plan, "_resident_blocks", lambda phases, preset, *_: 1)
    run, found = compare_blocks(replace(settings, memory=name))
    assert found.as_mapping() == expected["plain"]
    assert DEPTH in walked, "the transformer was not streamed"
    assert read_settings(run.folder / "settings.yaml").preset == name


def test_falls_back_to_a_smaller_preset(settings, expected, monkeypatch, caplog):
    if "plain" not in expected:
        expected["plain"] = compare_blocks(settings)[1].as_mapping()
    read, failures = targets.clip_flows, [torch.OutOfMemoryError("planted")] * 2
    monkeypatch.setattr(choice, "RETRY_SHARE", 2.0)  # a small model: no preset needs much less

    def fails(*given):
        if failures:
            raise failures.pop()
        return read(*given)

    monkeypatch.setattr(job, "clip_flows", fails)
    with caplog.at_level(logging.WARNING):
        run, found = compare_blocks(replace(settings, memory="16gb"))
    assert sum("out of memory in flow" in message for message in caplog.messages) == 2
    assert read_settings(run.folder / "settings.yaml").preset == "8gb"
    assert found.as_mapping() == expected["plain"]


def test_a_still_clip_names_no_block(settings, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    video.write_clip(video.Clip(np.stack([picture] * 12), Fraction(8)), tmp_path / "still")
    run, found = compare_blocks(replace(settings, video=str(tmp_path / "still")))
    assert found.choice.block is None and found.choice.why.startswith("nothing moves: 0.0% of the tokens")
    assert found.as_text().splitlines()[-1].startswith("guide no block: nothing moves")
    entry = json.loads((run.folder / "blocks.json").read_text())["references"]["optical flow"]["blocks"]["2"]
    assert entry["score"] is None and entry["levels"][0]["correlation"] is None


def test_command_line(settings, tmp_path, capsys):
    words = command(settings)
    words += ["--blocks", "1", "3", "--timestep", "0", "300", "--output"]
    assert main([*words, str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "run") and lines[-2].startswith("guide ")
    head = "| block | t=0: r | agree | stray | t=300: r | agree | stray | score |"
    assert [cell.strip() for cell in lines[2].split("|")] == [cell.strip() for cell in head.split("|")]
    assert [line.split()[1] for line in lines if re.match(r"\| +\d", line)] == ["1", "3"]
    assert main([*words, str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "quiet")]


@pytest.mark.parametrize(
    "words, code, says",
    [
        ("--blocks 3 6", 2, "blocks: block 6 given, this model has blocks 0 to 5, or all"),
        ("--blocks 3 all", 2, "--blocks 3 all: accepted are all, or block numbers such as 3 5 9"),
        ("--blocks -1", 2, "--blocks"),
        ("--blocks all --timestep 1000", 2, "timestep: 1000 given, this schedule has timesteps 0 (the clean"),
        ("--blocks all --timestep -5", 2, "timestep"),
        ("--blocks all --timestep high", 2, "argument --timestep: invalid int value: 'high'"),
        ("--timestep 300", 2, "--timestep is for --blocks: give --blocks all, or leave out --timestep"),
        ("--blocks all --guidance-blocks 2", 2, "give only one of them"),
    ],
)
def test_impossible_questions_are_refused(settings, words, code, says, tmp_path, capsys):
    given = command(settings)
    try:
        found = main([*given, "--output", str(tmp_path / "run"), *words.split()])
    except SystemExit as stop:
        found = stop.code
    error = capsys.readouterr().err
    assert found == code and says in error and error.startswith("ditflow: ")
    assert error.count("ditflow: ") == 1 and not (tmp_path / "run").exists()


def test_opencv_is_asked_for_before_any_work(settings, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    given = command(settings)
    assert main([*given, "--blocks", "all", "--output", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == 'ditflow: optical flow needs OpenCV: pip install "ditflow[eval]"\n'
    assert not (tmp_path / "run").exists()
    assert (
        main([*given, "--guidance-blocks", "2", "--output", str(tmp_path / "run"), "--quiet"]) == 0
    )  # without it


def test_the_optical_flow_is_of_the_clip_as_the_model_sees_it(compared):
    folder, comparison = compared
    frames = video.read_clip(folder / "reference.mp4", frames=24, size=None).frames
    measured = token_flow(frames, (6, 8, 12), [range(start, start + 4) for start in range(0, 24, 4)])
    moving = (np.linalg.norm(np.nan_to_num(measured), axis=-1) >= 0.5).any(axis=1).mean()
    assert comparison.references[job.MEASURED].moving == pytest.approx(moving, abs=0.03)
