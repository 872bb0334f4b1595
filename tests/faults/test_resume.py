"""`ditflow resume` and `ditflow decode`: what they do with a run folder, and what they refuse."""

import json
import shutil

import pytest
import torch
from run_processes import contents
from safetensors.torch import load_file

from ditflow.cli.main import main
from ditflow.run_folder.run import STATE


@pytest.mark.fault("the input video is removed during a run")
def test_resuming_does_not_need_the_video(fork_server, stopped, clip):
    away = clip.with_suffix(".away")
    clip.rename(away)
    try:
        assert fork_server.resume(stopped.parent) == 0, fork_server.error(stopped.parent)
    finally:
        away.rename(clip)
    assert contents(stopped) == fork_server.whole
    record = json.loads((stopped / "run.json").read_text())
    assert record["resumed"] and [len(losses) for losses in record["losses"]] == [1, 1]


def test_resume_with_less_memory(fork_server, stopped):
    assert fork_server.resume(stopped.parent, "--memory", "4gb") == 0, fork_server.error(stopped.parent)
    found, expected = (
        load_file(run / "latents.safetensors") for run in (stopped, fork_server.folder / "run")
    )
    torch.testing.assert_close(found["latents"], expected["latents"], rtol=1e-5, atol=1e-5)
    assert "preset: 4gb" in (stopped / "settings.yaml").read_text()


def test_resuming_a_finished_run_only_cleans_up(fork_server, tmp_path, capsys):
    run = shutil.copytree(fork_server.folder / "run", tmp_path / "run")
    (run / STATE).mkdir()  # left by a process that was killed at the very end
    assert main(["resume", str(run)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{run}\n"
    assert f"{run} is finished: there is nothing to resume" in told.err
    assert contents(run) == fork_server.whole and not (run / STATE).exists()


def test_decode_remakes_the_videos_of_a_finished_run(fork_server, tmp_path):
    run = shutil.copytree(fork_server.folder / "run", tmp_path / "run")
    assert fork_server.run(tmp_path, "decode", "run", "--quiet") == 1
    assert "run/result.mp4 exists: move it away" in fork_server.error(tmp_path)
    (run / "result.mp4").unlink()
    before = contents(run)
    assert fork_server.run(tmp_path, "decode", "run", "--quiet") == 0, fork_server.error(tmp_path)
    found = contents(run)
    assert found.pop("result.mp4") == fork_server.whole["result.mp4"]
    assert found.keys() == before.keys()
    remade = {name for name in found if found[name] != before[name]}
    assert remade <= {"comparison.mp4"}  # rebuilt from the compressed reference.mp4


@pytest.mark.parametrize("command", ["resume", "decode"])
def test_folders_that_are_not_runs(tmp_path, capsys, command):
    assert main([command, str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"ditflow: {tmp_path} is not a run folder: it has no settings.yaml; give a transfer's folder\n"
    )


def test_decode_before_denoising_is_finished(stopped, capsys):
    assert main(["decode", str(stopped)]) == 1
    assert (
        f"denoising is not finished; continue it with `ditflow resume {stopped}`" in capsys.readouterr().err
    )
