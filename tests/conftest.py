"""Fixtures that several test folders share.

The main process of xdist reads this file and runs no test, so torch and the models are imported in fixtures.
"""

import gc
import os
import shutil
import signal
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from made_videos import KINDS, made_video, remuxed
from reliability import pytest_addoption, pytest_configure, pytest_itemcollected  # noqa: F401  its hooks
from run_processes import ForkServer

from ditflow import video
from ditflow.cli.main import main
from ditflow.video import decoding

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests send it, and `nohup make test` would have it ignored


def pytest_collection_finish():
    """What has been imported stays, so garbage collections need not look through it."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def power_stays_on():
    """Files are not flushed to disk: only a power cut would tell, and waiting for disks takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models are tiny: a second thread costs more than it saves, and reorders sums."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, whatever the order of the tests."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(params=["rotary", "additive"])
def backbone(request):
    from tiny_models import tiny_backbone

    return tiny_backbone(rotary=request.param == "rotary")


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """A small pipeline with random weights."""
    from tiny_pipelines import build_pipeline

    folder = tmp_path_factory.mktemp("models") / "small"
    build_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in KINDS.items():
        made_video(folder / name, *kind)
    made_video(folder / "odd.mkv", "ffv1", "yuv444p", {}, height=47, width=63)
    remuxed(folder / "plain.mp4", folder / "front.mp4", movflags="faststart")
    return folder


@pytest.fixture
def without_decord(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)


@pytest.fixture
def decoded(monkeypatch) -> list[int | None]:
    """Timestamps of the frames that PyAV has decoded."""
    stamps, real = [], decoding.decoded_frames

    def recorded(*arguments, **keywords):
        for frame in real(*arguments, **keywords):
            stamps.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "decoded_frames", recorded)
    return stamps


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A square that moves to the right and down over noise."""
    noise = np.random.default_rng(0).integers(0, 90, (32, 48, 3), dtype=np.uint8)
    frames = np.stack([noise] * 14)
    for index, frame in enumerate(frames):
        frame[4 + index : 14 + index, 2 * index : 2 * index + 12] = (250, 200, 40)
    path = tmp_path_factory.mktemp("clips") / "square.mp4"
    video.write_clip(video.Clip(frames, Fraction(10)), path)
    return path


@pytest.fixture(scope="session")
def fork_server(clip, small_folder, tmp_path_factory):
    """Runs commands in forks of a warm process, and holds the files of an undisturbed run."""
    from tiny_pipelines import quick_settings

    settings = quick_settings(
        clip,
        small_folder,
        size="32x16",
        frames=9,
        steps=3,
        guided=0.67,
        optimise="embedding",
        optimisation_steps=1,
        scheduler="dpm",
        output="run",
    )
    with ForkServer(settings, tmp_path_factory.mktemp("fork_server")) as server:
        yield server


@pytest.fixture(scope="session")
def killed(fork_server, tmp_path_factory):
    """The folder of a run that was killed late in denoising."""
    trap = {"stage": "denoise", "at": int(0.9 * fork_server.calls["denoise"]), "signum": signal.SIGKILL}
    for _ in range(5):  # a thread writes the state, and on a busy machine it may not get its turn
        folder = tmp_path_factory.mktemp("killed")
        assert fork_server.transfer(folder, trap=trap) == -signal.SIGKILL
        if (written := folder / "run" / "state" / "step.safetensors").exists():
            break
    assert written.exists()
    return folder / "run"


@pytest.fixture
def stopped(killed, tmp_path):
    """A copy of the killed run's folder."""
    return shutil.copytree(killed, tmp_path / "run")


@pytest.fixture
def settings(clip, small_folder, tmp_path):
    from tiny_pipelines import quick_settings

    return quick_settings(clip, small_folder, output=str(tmp_path / "run"))


@pytest.fixture
def ditflow(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder; returns what it prints, or with `fails` its exit code and error."""
    monkeypatch.chdir(tmp_path)

    def run(*words, fails=False):
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        if fails:
            return code, told.err
        assert code == 0, told.err
        return told.out

    return run
