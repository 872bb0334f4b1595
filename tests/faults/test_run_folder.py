"""Run folders that are killed between files, moved, deleted, damaged or in the way."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_processes import contents
from tiny_pipelines import latents

from ditflow import DitflowError, SettingsError, decode, files, resume, transfer, video
from ditflow.cli.main import main
from ditflow.errors import NotFinite, TemporaryError
from ditflow.jobs.job import Job
from ditflow.run_folder.run import Run, check_output_name, create_run, settings_text
from ditflow.settings import read_settings

fault = pytest.mark.fault


@pytest.fixture
def unfinished(settings, monkeypatch):
    """A run with `--format frames` that was killed after its last frame folder; a whole run's files."""
    settings = replace(settings, format="frames")
    whole = contents(transfer(settings).folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Job, "end", killed)
        transfer(settings)
    folder = Path(f"{settings.output}-2")
    assert (folder / "result" / "00000.png").exists() and not (folder / "run.json").exists()
    return folder, whole


def killed(*_, **__):
    raise KeyboardInterrupt


@fault("killed between the frame folders and run.json")
def test_an_unfinished_run_replaces_its_own_frames(unfinished):
    folder, whole = unfinished
    (folder / "result" / "00003.png").unlink()
    resume(folder)
    assert contents(folder).keys() == whole.keys()
    for name, data in whole.items():
        assert name == "settings.yaml" or contents(folder)[name] == data, name


@fault("killed between removing an old frame folder and renaming the new one")
def test_killed_while_frames_are_replaced(unfinished, monkeypatch):
    folder, whole = unfinished
    (folder / "result").rename(folder / ".result.00000000.unfinished")
    resume(folder)
    assert contents(folder).keys() == whole.keys()


@fault("a file of the user's in a frame folder of an unfinished run")
def test_a_folder_with_other_files_is_not_replaced(unfinished):
    folder, _ = unfinished
    (folder / "result" / "notes.txt").write_text("precious")
    with pytest.raises(DitflowError, match="result is an existing folder: move it away"):
        resume(folder)
    assert (folder / "result" / "notes.txt").read_text() == "precious"


def test_a_failed_replacement_keeps_the_old_frames(tmp_path, monkeypatch):
    frames = video.Clip(np.zeros((2, 16, 16, 3), np.uint8), 8)
    video.write_clip(frames, tmp_path / "result")
    real = os.replace

    def refuse(source, target):
        if Path(target) == tmp_path / "result" and (Path(source) / "00000.png").exists() and not calls:
            calls.append(target)
            raise OSError(28, "No space left on device")
        real(source, target)

    calls = []
    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(DitflowError, match="No space left"):
        video.write_clip(frames, tmp_path / "result", replace_frames=True)
    assert calls and os.listdir(tmp_path) == ["result"]
    assert len(os.listdir(tmp_path / "result")) == 2


@fault("power lost after a frame folder got its name")
def test_frames_are_on_disk_before_their_folder_gets_its_name(tmp_path, monkeypatch):
    events, sync, rename = [], files._to_disk, os.replace
    monkeypatch.setattr(files, "_to_disk", lambda path: (events.append(path.name), sync(path)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (events.append("renamed"), rename(*paths)))
    video.write_clip(video.Clip(np.zeros((2, 16, 16, 3), np.uint8), 8), tmp_path / "result")
    before = events[: events.index("renamed")]
    assert sorted(before)[1:] == ["00000.png", "00001.png"] and before[-1].endswith(".unfinished")
    assert events[-1] == tmp_path.name


def vanish(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("elsewhere"))


def swap(folder):
    move(folder)
    folder.mkdir()
    (folder / ".lock").write_text("another process")


@pytest.mark.parametrize(
    "moment, kind",
    [("encode", "mp4"), ("decode", "mp4"), ("write", "mp4"), ("write", "frames"), ("end", "mp4")],
)
@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(vanish, marks=fault("run folder deleted during a run")),
        pytest.param(move, marks=fault("run folder moved during a run")),
        pytest.param(swap, marks=fault("run folder replaced by another during a run")),
    ],
)
def test_run_folder_vanishes(settings, monkeypatch, capsys, happens, moment, kind):
    folder, real = Path(settings.output), getattr(Job, moment)

    def disturbed(job, *given, **more):
        if folder.exists() and not (folder.with_name("elsewhere")).exists():
            if moment == "write" and given[0] != "result":
                return real(job, *given, **more)
            happens(folder)
        return real(job, *given, **more)

    monkeypatch.setattr(Job, moment, disturbed)
    config = folder.with_name("config.yaml")
    config.write_text(replace(settings, format=kind).to_yaml())
    assert main(["transfer", "--config", str(config), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{folder} was moved, deleted or replaced" in error
    assert "continues from there" not in error
    left = contents(folder) if folder.exists() else {}
    assert left == ({".lock": b"another process"} if happens is swap else {})
    if happens is not vanish:
        monkeypatch.undo()
        assert latents(resume(folder.with_name("elsewhere"))).isfinite().all()


@pytest.mark.parametrize(
    "error, hint",
    [
        (TemporaryError("the disk is full"), True),
        (KeyboardInterrupt(), True),
        (DitflowError("unsupported"), False),
        (SettingsError("wrong"), False),
        (NotFinite("NaN"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_resume_is_recommended_only_where_it_can_help(settings, monkeypatch, error, hint):
    def fail(*_):
        raise error

    monkeypatch.setattr(Job, "decode", fail)
    with pytest.raises(type(error)) as caught:
        transfer(settings)
    wanted = f"`ditflow resume {settings.output}` continues from there"
    assert getattr(caught.value, "__notes__", []) == [wanted] * hint


def test_resume_is_not_recommended_before_it_works(settings, monkeypatch):
    monkeypatch.setattr(Job, "write_settings", killed)
    with pytest.raises(KeyboardInterrupt) as caught:
        transfer(settings)
    assert not getattr(caught.value, "__notes__", [])


@fault("`runs` is a dangling link")
def test_dangling_runs(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to("nowhere")
    with pytest.raises(DitflowError, match="runs is a link to nothing"):
        create_run(replace(settings, output=""))
    with pytest.raises(DitflowError, match="runs is a link to nothing"):
        create_run(replace(settings, output="runs/deep/er"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [".", "/", "..", "new/..", "./", "file", "link", "/dev/null"])
@fault("an output that cannot be a new folder")
def test_output_names(settings, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SettingsError, match=r"output: .*give the name of a new folder"):
        transfer(replace(settings, output=name))
    assert sorted(tmp_path.iterdir()) == before


def test_good_output_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("", "runs/", "../x", "new/one", str(tmp_path)):
        check_output_name(name)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"phases": 3}'])
@fault("a damaged run.json")
def test_a_damaged_record_is_not_a_finished_run(fork_server, stopped, tmp_path, content):
    (stopped / "run.json").write_text(content)
    assert fork_server.resume(tmp_path) == 0, fork_server.error(tmp_path)
    assert Run.open(stopped).finished and contents(stopped) == fork_server.whole
    (stopped / "run.json").write_text(content)
    for job in (resume, decode):
        with pytest.raises(DitflowError, match="run.json is damaged"):
            job(stopped)
    assert contents(stopped) == fork_server.whole


@pytest.mark.parametrize("count, fits", [(1000, True), (1300, False)])
def test_settings_too_long_to_be_read_back(settings, tmp_path, count, fits):
    long = replace(settings, lora=tuple(f"someone/{'x' * 200}-{index}" for index in range(count)))
    if fits:
        (tmp_path / "settings.yaml").write_text(settings_text(long))
        assert read_settings(tmp_path / "settings.yaml") == long
        return
    with pytest.raises(SettingsError, match="the settings take .* bytes, at most .* accepted"):
        transfer(long)
    assert not Path(settings.output).exists()


@pytest.mark.parametrize("present", ["result", "comparison"])
def test_decode_checks_both_frame_folders_first(settings, monkeypatch, present):
    folder = transfer(replace(settings, format="frames")).folder
    absent = ({"result", "comparison"} - {present}).pop()
    shutil.rmtree(folder / absent)
    monkeypatch.setattr(Job, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DitflowError, match=f"{present} exists: move it away"):
        decode(str(folder))
    assert not (folder / absent).exists()
