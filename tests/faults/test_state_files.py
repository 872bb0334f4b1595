"""Run states that cannot be resumed are refused in one line, before any work and without changing a file."""

import os
import random
import socket
from contextlib import contextmanager

import pytest
import yaml
from run_processes import contents

from ditflow.cli.main import main
from ditflow.run_folder import fingerprint as identity
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import STATE

DAMAGE = [
    pytest.param(kind, seed, marks=pytest.mark.fault(f"state {words} at a random place"), id=f"{kind}-{seed}")
    for kind, words in (("cut", "file cut short"), ("flip", "file with a flipped bit"))
    for seed in range(1, 9)
]


def refusal(folder, capsys):
    """Assert that `resume` refuses in one line and changes no file; return the line."""
    before = contents(folder)
    assert main(["resume", str(folder), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ditflow: ") and error.count("\n") == 1
    after = contents(folder)
    for hidden in {name for name in before.keys() - after.keys() if "/." in f"/{name}"}:
        del before[hidden]  # leftovers of the killed process
    assert after == before
    return error


@pytest.mark.parametrize("kind, seed", DAMAGE)
def test_damaged(stopped, capsys, kind, seed):
    draw = random.Random(f"{kind} {seed}")
    path = draw.choice(sorted((stopped / STATE).glob("*.safetensors")))
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    if kind == "cut":
        del data[place:]
    else:
        data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    error = refusal(stopped, capsys)
    assert path.name in error or "have changed since the run began" in error


@pytest.mark.parametrize("name", ["clip", "embedding_000"])
@pytest.mark.fault("a state file is missing")
def test_missing(stopped, capsys, name):
    (stopped / STATE / f"{name}.safetensors").unlink()
    assert name in refusal(stopped, capsys)


@pytest.mark.fault("state written by an older version")
def test_state_of_another_version(stopped, capsys, monkeypatch):
    monkeypatch.setattr(identity, "FORMAT", "2")
    assert "written by another version of ditflow (format 1" in refusal(stopped, capsys)


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"steps": 4, "guided": 0.5}], ids=lambda change: "-".join(change)
)
@pytest.mark.fault("settings.yaml edited between interruption and resume")
def test_other_settings(stopped, capsys, change):
    path = stopped / "settings.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    words = ", ".join(sorted(change))
    assert f"the settings have changed since the run began ({words})" in refusal(stopped, capsys)


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.fault("weights replaced between interruption and resume")
def test_other_weights(stopped, small_folder, capsys, part):
    path = next((small_folder / part).glob("*.safetensors"))
    with flipped(path):
        error = refusal(stopped, capsys)
    assert "the weights have changed since the run began" in error
    assert path.name in error


@contextmanager
def flipped(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.fault("two processes in one run folder at once")
def test_two_at_once(stopped, capsys):
    with locked(stopped):
        for command in ("resume", "decode"):
            (stopped / "latents.safetensors").touch()
            assert main([command, str(stopped), "--quiet"]) == 1
            holder = f"in use by process {os.getpid()} on {socket.gethostname()}"
            assert holder in capsys.readouterr().err
    assert not (stopped / ".lock").exists()


def test_a_lock_file_left_by_a_dead_process_does_not_block(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("name", [STATE, ".lock"])
@pytest.mark.fault("a run folder whose state or lock is a link out of the folder")
def test_links_out_are_refused(stopped, tmp_path, capsys, name):
    outside = tmp_path / "outside"
    (stopped / name).rename(outside) if (stopped / name).exists() else outside.write_text("precious")
    (stopped / name).symlink_to(outside)
    before = contents(outside) if outside.is_dir() else outside.read_text()
    assert main(["resume", str(stopped), "--quiet"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert (contents(outside) if outside.is_dir() else outside.read_text()) == before
