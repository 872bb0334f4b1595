"""Only regular files are opened: anything else could wait for ever."""

import os
import socket
from pathlib import Path

import pytest

from ditflow.errors import DitflowError
from ditflow.files import regular_file


def test_other_kinds_of_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("fifo")
    Path("folder").mkdir()
    Path("empty").touch()
    Path("link").symlink_to("fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket")
    kinds = {"fifo": "named pipe", "link": "named pipe", "folder": "folder", "socket": "socket"}
    kinds |= {"/dev/zero": "device"}
    for name, kind in kinds.items():
        with pytest.raises(DitflowError, match=f"{name} is a {kind}: give a regular file"):
            regular_file(Path(name))
    for name in ("empty", "/proc/version"):
        with pytest.raises(DitflowError, match=f"{name} is empty"):
            regular_file(Path(name))
    listening.close()
    with pytest.raises(FileNotFoundError):
        regular_file(Path("absent"))


def test_regular_files_and_links_to_them_are_returned(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert regular_file(tmp_path / "link") == tmp_path / "link"
