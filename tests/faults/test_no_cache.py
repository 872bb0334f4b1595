"""A cache that cannot be used: no home folder, or a folder that cannot be written to."""

import logging
import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest

from ditflow import files, transfer
from ditflow.cli.doctor import print_facts
from ditflow.files import cache_folder


def no_entry(_):
    raise KeyError("no such user")


@pytest.fixture
def homeless(monkeypatch):
    """As in a container that runs under a number without an entry in the passwd file."""
    files._tell_no_cache.cache_clear()
    for name in ("HOME", "XDG_CACHE_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(RuntimeError):
        Path.home()


@pytest.mark.fault("no home folder and a user without a name")
def test_no_home(homeless, settings, caplog):
    with caplog.at_level(logging.INFO, "ditflow"):
        run = transfer(replace(settings, guidance=False, steps=1))
        cache_folder()
    assert (run.folder / "result.mp4").exists()
    assert caplog.text.count("nothing is cached, because no home folder is known") == 1


@pytest.mark.fault("`ditflow doctor` without a home folder")
def test_doctor_without_home(homeless, monkeypatch, capsys):
    from ditflow.cli import doctor

    monkeypatch.setattr(doctor, "PROBES", {"disk": (doctor.disk,)})
    print_facts(as_json=False)
    assert "ditflow's cache      none: no home folder is known" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["file", "file/inside", "/proc/nothing", "x" * 300])
@pytest.mark.fault("a cache folder that cannot be made or written to")
def test_unwritable_cache(settings, monkeypatch, tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join(tmp_path, kind))
    run = transfer(replace(settings, guidance=False, steps=1))
    assert (run.folder / "result.mp4").exists() and (tmp_path / "file").read_text() == "mine"
