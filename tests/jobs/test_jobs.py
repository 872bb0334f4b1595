"""Whole jobs with the small model: the files of a run folder, replays, injection and interruption."""

import json
import logging
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_pipelines import latents, quick_settings

from ditflow import Settings, transfer, video
from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.jobs.job import Job
from ditflow.jobs.opening import begin_job
from ditflow.progress import Progress
from ditflow.sampling.denoising import Denoising
from ditflow.settings import read_settings
from ditflow.small.clips import main as write_made_clip

FRAMES = 10  # of the settings


def test_run_folder(settings, tmp_path):
    run = transfer(settings)
    names = {path.name for path in run.folder.iterdir()}
    resolved = replace(settings, preset="80gb", decode_tile="none", compile="off")  # memory is plentiful
    videos = {"result.mp4", "reference.mp4", "comparison.mp4"}
    assert names == videos | {"latents.safetensors", "settings.yaml", "run.json"}

    for name in videos:
        width = 96 if name == "comparison.mp4" else 48
        frames = video.read_clip(run.folder / name, frames=FRAMES, size=None).frames
        assert frames.shape == (FRAMES, 32, width, 3)
        assert Settings(**yaml.safe_load(video.read_metadata(run.folder / name))) == resolved
        with pytest.raises(DitflowError):
            video.read_clip(run.folder / name, frames=FRAMES + 1, size=None)

    record = json.loads((run.folder / "run.json").read_text())
    assert list(record["phases"]) == ["text", "encode", "denoise", "decode"]
    assert all(phase["seconds"] > 0 and phase["peak_bytes"] > 0 for phase in record["phases"].values())
    assert [len(step) for step in record["losses"]] == [2, 2]
    assert record["losses"][0][1] < record["losses"][0][0]
    assert record["versions"]["torch"] == torch.__version__
    assert read_settings(run.folder / "settings.yaml") == resolved


def test_same_settings_same_bytes(settings):
    first = transfer(settings)
    torch.manual_seed(12345)  # the global generator must not matter
    torch.rand(3)
    second = transfer(read_settings(first.folder / "settings.yaml"))
    assert second.folder.name == f"{first.folder.name}-2"
    assert (first.folder / "latents.safetensors").read_bytes() == (
        second.folder / "latents.safetensors"
    ).read_bytes()
    assert (first.folder / "result.mp4").read_bytes() == (second.folder / "result.mp4").read_bytes()
    assert not torch.equal(latents(transfer(replace(settings, seed=7))), latents(first))


def test_every_mode_gives_other_latents(settings):
    """The modes share one job and differ only in its denoising."""
    modes = {
        "flow": {},
        "soft": {"reference": "soft"},
        "all-rows": {"rows": "all"},
        "moft": {"loss": "moft"},
        "smm": {"loss": "smm"},
        "smm-release": {"loss": "smm-release"},
        "x0": {"loss": "x0"},
        "x0-after": {"x0_after": 0.5},
        "embedding": {"optimise": "embedding"},
        "no-guidance": {"guidance": False},
        "no-injection": {"injection": False},
        "backbone": {"guidance": False, "injection": False},
        "two-blocks": {"guidance_blocks": [1, 3]},
        "ddim": {"scheduler": "ddim"},
    }
    with begin_job(settings, Progress(), needs=()) as job:
        texts, reference, runner = job.texts(), job.encode(), job.runner()
        results = {}
        for name, change in modes.items():
            settings = replace(job.settings, **change)
            generator = torch.Generator().manual_seed(settings.seed)
            schedule = job.folder.schedule(settings.scheduler, settings.steps, settings.size, generator)
            denoising = Denoising(settings, schedule, texts, reference, lambda step: None)
            results[name] = denoising.run(runner).latents
    names = list(results)
    for index, name in enumerate(names):
        assert results[name].isfinite().all()
        for other in names[:index]:
            assert (results[name] - results[other]).abs().max() > 1e-4, (name, other)


@pytest.mark.parametrize("dtype, exact", [("float32", True), ("bfloat16", False)])
def test_embedding_is_saved_and_injected(settings, dtype, exact, tmp_path, capsys):
    run = transfer(replace(settings, optimise="embedding", keep_precision=exact))
    path = run.folder / "embedding.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
        assert sorted(file.keys()) == ["step_000", "step_001"]
        assert file.get_tensor("step_000").dtype == getattr(torch, dtype)
        assert file.get_tensor("step_000").shape == (2, 2, 4 * 4 * 6, 64)
    assert metadata["kind"] == "rotary"
    assert (metadata["frames"], metadata["size"], len(metadata["timesteps"])) == (FRAMES, "48x32", 4)

    output = str(tmp_path / "injected")
    assert (
        main(
            ["inject", "--from", str(run.folder), "--prompt", settings.prompt, "--output", output, "--quiet"]
        )
        == 0
    )
    injected = Path(capsys.readouterr().out.strip())
    again = load_file(injected / "latents.safetensors")["latents"]
    if exact:  # the same prompt and the unrounded embedding repeat the run without optimising
        assert torch.equal(again, latents(run))
    else:
        assert (again - latents(run)).norm() < 0.05 * latents(run).norm()
    assert json.loads((injected / "run.json").read_text())["losses"] == []
    assert not (injected / "embedding.safetensors").exists()


@pytest.fixture(scope="module")
def embedded(clip, small_folder, tmp_path_factory):
    """The folder of a run that has saved its optimised embedding."""
    output = str(tmp_path_factory.mktemp("embedded") / "run")
    return transfer(quick_settings(clip, small_folder, optimise="embedding", output=output)).folder


@pytest.mark.parametrize(
    "change, message",
    [
        (["--frames", "13"], "made with frames 10, but this run has 13"),
        (["--size", "32x32"], 'made with size "48x32", but this run has "32x32"'),
        (["--steps", "6"], "made with timesteps"),
        (["--guided", "1"], "holds 2 guided steps, but this run has 4"),
    ],
    ids=["frames", "size", "schedule", "guided"],
)
def test_embedding_of_another_run_is_refused(embedded, change, message, capsys):
    beside = set(embedded.parent.iterdir())
    assert main(["inject", "--from", str(embedded), "--quiet", *change]) == 1
    assert message in capsys.readouterr().err
    assert set(embedded.parent.iterdir()) == beside


def test_embedding_of_another_model_is_refused(embedded, small_folder, tmp_path, capsys):
    shutil.copytree(small_folder, tmp_path / "other")
    assert main(["inject", "--from", str(embedded), "--quiet", "--model", str(tmp_path / "other")]) == 1
    assert "made with model" in capsys.readouterr().err


def test_relative_paths_work_from_another_folder(settings, clip, small_folder, tmp_path, monkeypatch, capsys):
    """A run made with relative paths can be injected and repeated from elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(small_folder)
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    run = transfer(replace(settings, video="clip.mp4", model="./model", optimise="embedding"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["inject", "--from", str(run.folder), "--prompt", "a blue square", "--quiet"]) == 0
    assert main(["transfer", "--config", str(run.folder / "settings.yaml"), "--quiet"]) == 0
    again = Path(capsys.readouterr().out.splitlines()[-1])
    assert torch.equal(load_file(again / "latents.safetensors")["latents"], latents(run))


def test_damaged_run_folders(settings, capsys):
    run = transfer(settings)
    words = ["inject", "--from", str(run.folder), "--quiet"]
    assert main(words) == 1
    assert "only runs with --optimise embedding save one" in capsys.readouterr().err
    (run.folder / "embedding.safetensors").write_bytes(b"0123456789")
    assert main(words) == 1
    assert "embedding.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("levels", "reason", "noise"),
    [
        (255, "the clip shows no motion", "clean"),
        (255, "the clip shows no motion", "step"),
        (5, "the pictures use only 4 of 255 levels", "clean"),
    ],
)
def test_still_clip(settings, tmp_path, caplog, levels, reason, noise):
    path = tmp_path / "still"
    picture = np.random.default_rng(0).integers(0, levels, (32, 48, 3), dtype=np.uint8)
    video.write_clip(video.Clip(np.stack([picture] * 12), Fraction(8)), path)
    with caplog.at_level(logging.WARNING, "ditflow"):
        run = transfer(replace(settings, video=str(path), reference_noise=noise))
    assert f"{reason}: there is nothing to transfer, so optimisation is skipped" in caplog.messages
    assert latents(run).isfinite().all()
    assert not any(map(any, json.loads((run.folder / "run.json").read_text())["losses"]))


def test_an_interrupted_run_leaves_only_complete_files(settings, monkeypatch, capsys):
    def interrupted(job, latents):
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer(settings)
    names = {path.name for path in Path(settings.output).iterdir()}
    assert names == {"settings.yaml", "reference.mp4", "latents.safetensors", "state"}
    assert latents(type("Run", (), {"folder": Path(settings.output)})).isfinite().all()


def test_bad_input_leaves_no_folder(settings, tmp_path):
    for change in ({"video": str(tmp_path / "absent.mp4")}, {"guidance_blocks": [9]}, {"frames": 300}):
        with pytest.raises(DitflowError):
            transfer(replace(settings, **change))
    assert not Path(settings.output).exists()


@pytest.mark.parametrize("kind", ["gif", "frames"])
def test_other_formats(settings, kind):
    folder = transfer(replace(settings, format=kind, guided=0)).folder
    result = folder / ("result.gif" if kind == "gif" else "result")
    assert video.read_clip(result, frames=FRAMES, size=None).frames.shape == (FRAMES, 32, 48, 3)


def test_flow(settings, tmp_path, capsys):
    words = [
        "flow",
        "--video",
        settings.video,
        "--model",
        settings.model,
        "--size",
        "48x32",
        "--frames",
        "10",
    ]
    words += [
        "--dtype",
        "float32",
        "--guidance-blocks",
        "0",
        "2",
        "--output",
        str(tmp_path / "flow"),
        "--quiet",
    ]
    assert main(words) == 0
    folder = Path(capsys.readouterr().out.strip())
    flows = load_file(folder / "flow.safetensors")
    assert sorted(flows) == ["block_0", "block_2"]
    for flow in flows.values():
        assert flow.shape == (4, 4, 4 * 6, 2)
        assert flow.any()
    for block in (0, 2):
        assert (folder / f"flow_block_{block}.png").stat().st_size > 0
        assert video.read_clip(folder / f"arrows_block_{block}.mp4", frames=4, size=None).frames.std() > 0
    assert not (folder / "flow_true.png").exists()  # the true motion of this clip is unknown


def test_flow_of_a_generated_clip_comes_with_the_true_flow(small_folder, tmp_path, capsys):
    assert write_made_clip([str(tmp_path / "made.mp4"), "--seed", "5"]) == 0
    words = ["flow", "--video", str(tmp_path / "made.mp4"), "--model", str(small_folder), "--size", "96x64"]
    words += ["--dtype", "float32", "--guidance-blocks", "2"]
    words += ["--output", str(tmp_path / "flow"), "--quiet"]
    assert main(words) == 0
    truth, read = (Image.open(tmp_path / "flow" / f"flow_{name}.png") for name in ("true", "block_2"))
    assert truth.size == read.size and truth.tobytes() != read.tobytes()
    arrows = video.read_clip(tmp_path / "flow" / "arrows_true.mp4", frames=6, size=None).frames
    assert (arrows[0] != arrows[5]).any()
