"""The page's section about the motion in the frames."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ditflow.pages.motion import motion_section
from ditflow.pictures.flow_pictures import UNKNOWN, heat
from ditflow.settings import Settings
from ditflow.small.clips import FRAME_RATE, made_clip
from ditflow.video import Clip


class Finished(SimpleNamespace):
    """A run whose videos are given."""

    def clip(self, name):
        return Clip(np.ascontiguousarray(getattr(self, name)), FRAME_RATE)


def run(result):
    clip, settings = made_clip(0, frames=9).frames, Settings(video="clip.mp4", model="small")
    return Finished(folder=Path("run"), reference=clip, result=result, settings=settings, has_target=False)


def numbers(section):
    return dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', section))


def test_numbers_and_controls_are_shown():
    frames = made_clip(0, frames=9).frames
    section, data = motion_section(run(frames[::-1]), 0)
    found = numbers(section)
    assert float(found["motion"]) < 0.3 and float(found["against the clip reversed"]) > 0.9
    assert (data["height"], data["width"]) == (8, 12)
    same, _ = motion_section(run(frames), 0)
    assert numbers(same)["motion"] == numbers(same)["reach"] == "1.00"


def test_still_and_short_results():
    still, _ = motion_section(run(np.repeat(made_clip(0, frames=1).frames, 9, axis=0)), 0)
    assert "Nothing moves in the result." in still and numbers(still)["camera"] == "-"
    assert motion_section(run(made_clip(0, frames=1).frames), 0) == (
        "<p>A single frame has no motion.</p>",
        None,
    )


def test_without_opencv_the_page_says_why(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cv2", None)
    section, data = motion_section(run(made_clip(0, frames=9).frames), 0)
    assert data is None and section.startswith("<p>Not available: optical flow needs OpenCV")
    assert "no optical flow" in caplog.text


def test_heat_is_white_then_red_and_grey_where_nothing_is_known():
    picture = heat(np.array([[0, 1, 2, 1.0]]), 1.0, np.array([[1, 1, 1, 0.0]]))
    assert picture[0].tolist() == [[255] * 3, [190, 20, 20], [190, 20, 20], [UNKNOWN] * 3]
