"""A full disk, a limit on file size, and folders that cannot be written to."""

import errno
import os
import random

import pytest
from run_processes import contents

from ditflow.cli.main import main
from ditflow.run_folder import lock

FULL = [
    pytest.param(seed, marks=pytest.mark.fault("disk full at a random moment"), id=str(seed))
    for seed in range(1, 4)
]
LIMITS = [
    pytest.param(seed, marks=pytest.mark.fault("a random limit on file size"), id=str(seed))
    for seed in range(1, 3)
]


def assert_stopped_cleanly(fork_server, folder):
    """One line of error, whole files under final names, and a run that resumes once there is room."""
    error = fork_server.error(folder)
    assert error.startswith("ditflow: ") and "cannot be written" in error and error.count("\n") == 1, error
    left = contents(folder / "run")
    assert not [name for name in left if name.endswith(".unfinished")]
    for name, data in left.items():
        if "/" not in name:
            assert data == fork_server.whole[name], name
    resumable = "settings.yaml" in left
    assert ("`ditflow resume run` continues" in error) == resumable
    assert fork_server.resume(folder) == (0 if resumable else 1)
    if resumable:
        assert contents(folder / "run") == fork_server.whole


@pytest.mark.parametrize("seed", FULL)
def test_disk_full(fork_server, tmp_path, seed):
    after = random.Random(seed).randrange(len(fork_server.whole) + 8)  # run files, then state files
    assert fork_server.transfer(tmp_path, full_after=after) == 1
    assert_stopped_cleanly(fork_server, tmp_path)


@pytest.mark.parametrize("seed", LIMITS)
def test_file_size_limit(fork_server, tmp_path, seed):
    largest = max(map(len, fork_server.whole.values()))
    assert fork_server.transfer(tmp_path, largest_file=random.Random(seed).randrange(500, largest)) == 1
    assert_stopped_cleanly(fork_server, tmp_path)


@pytest.mark.fault("an output where no folder can be made")
def test_no_folder_can_be_made(fork_server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert fork_server.transfer(tmp_path, "--output", "file/run") == 1
    assert "cannot make the run folder file/run" in fork_server.error(tmp_path)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.fault("resume in a read-only folder")
def test_read_only_folder(stopped, monkeypatch, capsys):
    """Tests may run as root, who may write anywhere, so the system call is replaced by one that fails."""

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = contents(stopped)
    monkeypatch.setattr(lock.os, "open", refuse)
    code = main(["resume", str(stopped), "--quiet"])
    monkeypatch.undo()
    assert code == 1
    assert "cannot be locked (Read-only file system)" in capsys.readouterr().err
    assert contents(stopped) == before
