"""Where a system lacks what Linux has, as Windows does, the program runs on a CPU all the same."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from repository import ROOT

from ditflow.errors import DitflowError
from ditflow.files import whole_or_absent
from ditflow.memory import capacity
from ditflow.run_folder import lock


def test_a_transfer_without_posix(clip, tmp_path):
    words = ["transfer", "--model", "small", "--video", clip, "--prompt", "a red circle on a blue background"]
    quick = ["--frames", "9", "--steps", "1", "--no-guidance", "--output", tmp_path / "run"]
    program = ROOT / "tests" / "suite" / "without_posix.py"
    done = subprocess.run([sys.executable, program, *words, *quick], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.mp4").stat().st_size > 0
    assert not list((tmp_path / "run").glob(".*"))


@pytest.fixture
def windows_lock(monkeypatch):
    """The lock's module as Windows has it, and the positions of the locked bytes by file."""
    held = {}

    def locking(descriptor, mode, count):
        file = os.fstat(descriptor).st_ino
        if file in held:
            raise PermissionError("locked")
        held[file] = os.lseek(descriptor, 0, os.SEEK_CUR)

    real_close = os.close
    monkeypatch.setattr(os, "close", lambda it: (held.pop(os.fstat(it).st_ino, None), real_close(it)))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    spec = importlib.util.spec_from_file_location("windows_lock", lock.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, held


def test_a_windows_lock_holds_and_names_its_holder(windows_lock, tmp_path):
    module, held = windows_lock
    with module.locked(tmp_path):
        # the name can be read, because the locked byte lies beyond it
        assert min(held.values()) > len((tmp_path / lock.FILE).read_bytes())
        with (
            pytest.raises(DitflowError, match=f"in use by process {os.getpid()} on "),
            module.locked(tmp_path),
        ):
            pass
    assert not (tmp_path / lock.FILE).exists()
    with module.locked(tmp_path):
        pass


def test_a_windows_lock_taken_between_its_release_and_its_removal_stays(windows_lock, tmp_path, monkeypatch):
    module, _ = windows_lock

    def refuse(*_, **__):
        raise PermissionError("open in another process")

    with module.locked(tmp_path):
        monkeypatch.setattr(module.Path, "unlink", refuse)
    assert (tmp_path / lock.FILE).exists()


def test_a_folder_that_cannot_be_opened_is_not_flushed(tmp_path, monkeypatch):
    opened, real = [], os.open

    def recorded(path, flags, *rest, **keywords):
        opened.append((path, flags & (os.O_RDWR | os.O_WRONLY)))
        return real(path, flags, *rest, **keywords)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", recorded)
    with whole_or_absent(tmp_path / "a") as unfinished:
        unfinished.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert [bool(writes) for path, writes in opened if path == unfinished] == [True]
    assert tmp_path not in [path for path, _ in opened]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_replaces_one_where_the_system_does_not(tmp_path, monkeypatch, replaced):
    real = os.replace

    def replace(source, path):
        if os.path.isdir(path):  # not even an empty one
            raise PermissionError("Access is denied")
        real(source, path)

    monkeypatch.setattr(os, "replace", replace)
    folder = tmp_path / "frames"
    folder.mkdir()
    if replaced:
        (folder / "old.png").touch()
    with whole_or_absent(folder, replace_folder=replaced) as unfinished:
        unfinished.mkdir()
        (unfinished / "new.png").touch()
    assert [path.name for path in folder.iterdir()] == ["new.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_a_folder_with_content_stays(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "mine.png").touch()
    with pytest.raises(OSError), whole_or_absent(tmp_path / "frames") as unfinished:
        unfinished.mkdir()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["frames", "frames/mine.png"]


def test_memory_is_given_back_without_a_c_library(monkeypatch):
    monkeypatch.setattr(capacity, "C_LIBRARY", None)
    capacity.give_back(capacity.torch.device("cpu"))
