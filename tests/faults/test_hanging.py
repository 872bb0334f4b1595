"""A video decoder that hangs is given up on."""

import threading

import pytest

from ditflow import DitflowError, video
from ditflow.video import deadline, reading


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(deadline, "LONGEST", 0.1)


@pytest.mark.fault("a video decoder that hangs")
def test_a_hanging_decoder_times_out(clip, impatient, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(reading, "read_video", lambda *_: forever.wait())
    with pytest.raises(DitflowError, match=r"square.mp4 could not be read within 0 s"):
        video.read_clip(clip, frames=10, size=None)
    forever.set()


def test_an_error_before_the_deadline_is_reported_as_it_is(tmp_path):
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(DitflowError, match="clip.mp4"):
        video.read_clip(tmp_path / "clip.mp4", frames=10, size=None)
