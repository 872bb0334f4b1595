"""The form as settings: what it refuses, with the same readers and limits as the command line."""

import pytest

from ditflow.app import form
from ditflow.app.form import DRAWN, SAMPLE, UPLOAD, Form
from ditflow.errors import DitflowError
from ditflow.limits import SETTINGS_BYTES
from ditflow.small.clips import made_clip
from ditflow.video import read_clip


def filled(**given):
    defaults = {"source": SAMPLE, "upload": None, "sample": 9, "drawing": "", "prompt": "a red circle"}
    defaults |= {"model": "small", "speed": "exact", "frames": 9, "mask": None, "keeps_embedding": False}
    return Form(**defaults | given)


def test_a_sample(tmp_path):
    settings = filled().settings(tmp_path, steps=4)
    assert (settings.model, settings.frames, settings.steps, settings.optimise) == ("small", 9, 4, "latent")
    clip = read_clip(settings.video, frames=24, size=None)
    assert abs(clip.frames.astype(int) - made_clip(9).frames).mean() < 4


def test_samples_have_names():
    names = form.sample_names()
    assert [seed for _, seed in names] == list(form.SAMPLE_SEEDS)
    assert len({name for name, _ in names}) == len(names)


def test_an_upload_is_kept_beside_the_runs_once(clip, tmp_path):
    first, second = (
        filled(source=UPLOAD, upload=str(clip), keeps_embedding=True).settings(tmp_path / "runs")
        for _ in range(2)
    )
    assert first.video == second.video and first.video.startswith(str(tmp_path / "runs" / form.FILES))
    assert first.source_name == clip.stem and first.optimise == "embedding"


def test_a_drawing(tmp_path):
    settings = filled(source=DRAWN, drawing=form.EXAMPLE_DRAWING).settings(tmp_path)
    assert not settings.has_clip and settings.motion.startswith(str(tmp_path))


def test_a_drawing_from_a_file(tmp_path):
    file = tmp_path / "drawing.json"
    file.write_text('{"camera": [{"time": 0}]}')
    assert form.drawing_text(file) == '{"camera": [{"time": 0}]}'
    for content, said in [
        (b"camera: 3", "a list of points"),
        (b"\xff", "not YAML"),
        (b"#" * (SETTINGS_BYTES + 1), "is larger than"),
    ]:
        file.write_bytes(content)
        with pytest.raises(DitflowError, match=said) as error:
            form.drawing_text(file)
        assert "\n" not in str(error.value)


def test_a_mask(clip, tmp_path):
    settings = filled(mask=str(clip)).settings(tmp_path)
    assert settings.mask.startswith(str(tmp_path))


def test_what_is_refused_is_said_in_one_line(clip, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for given, said in [
        ({"prompt": " "}, "no prompt given"),
        ({"source": UPLOAD}, "no clip given"),
        ({"source": UPLOAD, "upload": str(text)}, "text.mp4"),
        ({"source": UPLOAD, "upload": str(empty)}, "empty"),
        ({"source": UPLOAD, "upload": str(clip), "frames": 100}, "only 14 frames"),
        ({"source": DRAWN, "drawing": "objects: 3"}, "motion file"),
        ({"source": DRAWN, "drawing": f"camera: {'x' * SETTINGS_BYTES}"}, "is larger than"),
        ({"frames": 10**9}, "at most"),
    ]:
        with pytest.raises(DitflowError, match=said) as error:
            filled(**given).settings(tmp_path / "runs")
        assert "\n" not in str(error.value)
