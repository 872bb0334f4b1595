"""A decoder that never comes back, and a pipe that nobody writes to: reading ends all the same."""

import os
import threading

import pytest

from ditflow import DitflowError, video
from ditflow.video import deadline, reading


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(deadline, "LONGEST", 0.1)


@pytest.mark.fault("a video decoder that hangs")
def test_decoder(clip, impatient, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(reading, "read_video", lambda *_: forever.wait())
    with pytest.raises(DitflowError, match=r"square.mp4 could not be read within 0 s"):
        video.read_clip(clip, frames=10, size=None)
    forever.set()


@pytest.mark.fault("a named pipe in the place of the video")
def test_pipe(tmp_path, impatient):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(DitflowError, match="could not be read within"):
        video.read_clip(tmp_path / "clip.mp4", frames=10, size=None)
    with (tmp_path / "clip.mp4").open("wb"):
        pass  # so that the thread's wait ends


def test_what_goes_wrong_in_time_is_told_as_it_is(tmp_path):
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(DitflowError, match="clip.mp4"):
        video.read_clip(tmp_path / "clip.mp4", frames=10, size=None)
