"""Writing clips: a complete file or none, with the same bytes each time."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ditflow.errors import DitflowError, SettingsError
from ditflow.video import Clip, read_clip, read_metadata, side_by_side, write_clip


def made_clip(count=12, height=64, width=96, rate=Fraction(8)) -> Clip:
    """Soft moving waves in colour with some noise, as in real clips."""
    noise = np.random.default_rng(0).normal(0, 6, (count, height, width, 1))
    time, y, x = np.mgrid[0:count, 0:height, 0:width]
    waves = [np.sin((x + 3 * time) / 9), np.cos((y - 2 * time) / 7), np.sin((x + y) / 11)]
    frames = 128 + 80 * np.stack(waves, axis=-1) + noise
    return Clip(frames.clip(0, 255).astype(np.uint8), rate)


def test_mp4_is_visually_lossless_and_plays_everywhere(tmp_path):
    clip = made_clip()
    write_clip(clip, tmp_path / "a.mp4")
    again = read_clip(tmp_path / "a.mp4", frames=12, size=None)
    error = again.frames.astype(float) - clip.frames
    assert np.square(error.mean(axis=-1)).mean() < 8  # brightness error; crf 18 has 9
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 2  # no tint
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (1, 1)
        assert container.streams.video[0].frames == 12
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it loads


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50)])
def test_mp4_keeps_colours_and_frame_rate(tmp_path, colour):
    clip = Clip(np.full((3, 32, 32, 3), colour, np.uint8), Fraction(30000, 1001))
    write_clip(clip, tmp_path / "a.mp4")
    again = read_clip(tmp_path / "a.mp4", frames=3, size=None)
    assert np.abs(again.frames.astype(int) - colour).max() <= 2
    assert again.frame_rate == clip.frame_rate


def test_metadata_comes_back(tmp_path):
    settings = "prompt: 'Zoë — 猫'\nsteps: 50\n" * 40
    write_clip(made_clip(2), tmp_path / "a.mp4", metadata=settings)
    write_clip(made_clip(2), tmp_path / "b.mp4")
    assert read_metadata(tmp_path / "a.mp4") == settings
    assert read_metadata(tmp_path / "b.mp4") is None
    with pytest.raises(DitflowError, match="c.mp4"):
        read_metadata(tmp_path / "c.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_same_clip_gives_the_same_bytes_whatever_is_in_memory(tmp_path, name):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_video_writing import made_clip, write_clip;"
        "write_clip(made_clip(8), sys.argv[2])"
    )
    contents = set()
    for filling in ("1", "170"):  # glibc fills fresh memory with this byte
        path = tmp_path / filling / name
        environment = os.environ | {"MALLOC_PERTURB_": filling}
        subprocess.run(
            [sys.executable, "-c", program, Path(__file__).parent, path], check=True, env=environment
        )
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_gif_keeps_every_frame_its_rate_and_looks(tmp_path):
    clip = made_clip()
    frames = clip.frames.copy()
    frames[4:7] = frames[3]  # still frames stay frames
    write_clip(Clip(frames, clip.frame_rate), tmp_path / "a.gif")
    again = read_clip(tmp_path / "a.gif", frames=12, size=None)
    assert again.frame_rate == 8
    error = again.frames.astype(float) - frames
    assert np.abs(error).mean() < 12
    assert np.abs(error.reshape(12, 16, 4, 24, 4, 3).mean(axis=(2, 4))).mean() < 3  # dithered
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 12 and image.info["loop"] == 0
    with pytest.raises(DitflowError, match="only 12 frames"):
        read_clip(tmp_path / "a.gif", frames=13, size=None)


def test_gif_frames_are_no_shorter_than_browsers_show(tmp_path):
    write_clip(made_clip(6, rate=Fraction(120)), tmp_path / "a.gif")
    assert read_clip(tmp_path / "a.gif", frames=6, size=None).frame_rate == 50


def test_mp4_takes_any_rate(tmp_path):
    rate = Fraction(10**12 + 1, 10**11)
    write_clip(made_clip(2, rate=rate), tmp_path / "a.mp4")
    assert float(read_clip(tmp_path / "a.mp4", frames=2, size=None).frame_rate) == pytest.approx(10)


def test_folder_of_frames_is_exact(tmp_path):
    clip = made_clip()
    write_clip(clip, tmp_path / "new" / "frames")
    assert np.array_equal(read_clip(tmp_path / "new" / "frames", frames=12, size=None).frames, clip.frames)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


class Interrupted(np.ndarray):
    """Frames that raise an error in place of the last one."""

    def __iter__(self):
        yield from np.asarray(self)[:-1]
        assert list(self.folder.glob(".*.unfinished"))
        raise self.error


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left"), ValueError()], ids=repr)
def test_interrupted_writing_leaves_what_was_there(tmp_path, name, error):
    if name != "frames":
        (tmp_path / name).write_text("the last run's")
    frames = made_clip(64, 16, 16).frames.view(Interrupted)
    frames.folder, frames.error = tmp_path, error
    with pytest.raises(DitflowError if isinstance(error, OSError) else type(error)):
        write_clip(Clip(frames, Fraction(8)), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ([] if name == "frames" else [name])
    if name != "frames":
        assert (tmp_path / name).read_text() == "the last run's"


def test_writing_replaces_a_file_but_no_folder_with_something_in_it(tmp_path):
    (tmp_path / "a.mp4").write_text("the last run's")
    write_clip(made_clip(2), tmp_path / "a.mp4")
    assert len(read_clip(tmp_path / "a.mp4", frames=2, size=None).frames) == 2
    (tmp_path / "frames").mkdir()
    write_clip(made_clip(2), tmp_path / "frames")
    with pytest.raises(DitflowError, match="frames is an existing folder"):
        write_clip(made_clip(2), tmp_path / "frames")


def test_refused_targets(tmp_path):
    with pytest.raises(SettingsError, match=r"\.mp4, \.gif .* not \.webm"):
        write_clip(made_clip(2), tmp_path / "a.webm")
    with pytest.raises(ValueError, match="95x64"):
        write_clip(Clip(made_clip(2).frames[:, :, :95], Fraction(8)), tmp_path / "a.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(DitflowError, match="cannot be written"):
        write_clip(made_clip(2), tmp_path / "file" / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_side_by_side():
    left, right = made_clip(3), Clip(made_clip(3, width=32).frames[:, ::-1], Fraction(25))
    both = side_by_side(left, right)
    assert np.array_equal(both.frames[:, :, :96], left.frames)
    assert np.array_equal(both.frames[:, :, 96:], right.frames)
    assert both.frame_rate == 8
    for other in (made_clip(2), made_clip(3, height=32)):
        with pytest.raises(ValueError, match="must match"):
            side_by_side(left, other)


@pytest.mark.parametrize("width", [32, 48, 64, 80])
def test_narrow_videos_come_back_as_they_were_written(tmp_path, width):
    ramp = np.linspace(0, 200, width, dtype=np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (9, 32, width, 3)).copy()
    write_clip(Clip(frames, Fraction(10)), tmp_path / "clip.mp4")
    read = read_clip(tmp_path / "clip.mp4", frames=9, size=None).frames
    assert np.abs(read.astype(int) - frames).mean() < 5
