"""The animated picture of what guidance does."""

from dataclasses import replace

import numpy as np

from ditflow import transfer
from ditflow.pages import showcase
from ditflow.small.clips import made_clip
from ditflow.video import read_clip

PROMPT = "a blue square on a white background"


def test_clip_and_both_results_move_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(showcase, "ROWS", ((9, PROMPT),))
    monkeypatch.setattr(
        showcase,
        "transfer",
        lambda settings: transfer(
            replace(settings, steps=2, guided=0.5, optimisation_steps=1, learning_rate=(0.3, 0.3))
        ),
    )
    videos = {}
    make = showcase.make_videos

    def made(*given):
        videos.update(make(*given))
        return videos

    monkeypatch.setattr(showcase, "make_videos", made)
    assert showcase.main([str(tmp_path / "shown.gif")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "shown.gif")
    shown = read_clip(tmp_path / "shown.gif", frames=24, size=None).frames.astype(int)
    clip, free, guided = (video.frames for video in videos.values())
    assert np.abs(clip.astype(int) - made_clip(9).frames).mean() < 8  # compressed
    assert np.abs(free.astype(int) - guided).mean() > 1
    width, top = 2 * clip.shape[2] + showcase.GAP, showcase.LETTER + showcase.GAP
    for column, frames in enumerate((clip, free, guided)):
        left = showcase.GAP + column * width
        panel = shown[:, top : top + 128 : 2, left : left + 192 : 2]
        assert np.abs(panel - frames).mean() < 12  # a GIF has few colours


def test_a_picture_of_another_kind_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(showcase, "make_showcase", lambda: None)
    assert showcase.main([str(tmp_path / "shown.png")]) == 2
    assert ".png" in capsys.readouterr().err
