"""Frames of variable rate are shown at their times, and `fps` resamples any video."""

from fractions import Fraction
from math import ceil

import av
import numpy as np
import pytest
from made_videos import H264, HEIGHT, WIDTH, indices, made_frame, remuxed
from PIL import Image

from ditflow.errors import SettingsError
from ditflow.settings import Settings
from ditflow.video import read_clip
from ditflow.video.resampling import resampled
from ditflow.video.timeline import read_timeline

TICK = Fraction(1, 20)  # seconds
SLOWING = [*range(12), *range(12, 60, 4)]  # when each frame is shown: 20, then 5 frames a second
CODECS = {
    "plain.mp4": ("libx264", H264),
    "plain.mov": ("libx264", H264),
    "plain.mkv": ("libx264", H264),
    "vp9.webm": ("libvpx-vp9", {"g": "8", "b": "1M"}),
    "skipping.avi": ("mpeg4", {"bf": "0", "b": "2M"}),  # frames are skipped by empty chunks
}


def timed_video(path, ticks, shown=None, *, codec="libx264", options=H264):
    """A video that shows made frame `shown[i]`, or i, from `ticks[i]` on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1 / TICK, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for tick, index in zip(ticks, shown or range(len(ticks)), strict=True):
            picture = av.VideoFrame.from_ndarray(made_frame(index), format="rgb24")
            picture.pts, picture.time_base = tick, TICK
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def timed_gif(path, ticks, last=1):
    pictures = [Image.fromarray(np.full((16, 16, 3), 8 + 6 * index, np.uint8)) for index in range(len(ticks))]
    durations = [int(1000 * TICK * gap) for gap in (*np.diff(ticks), last)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations)
    return path


def assert_in_time(clip, ticks, start=Fraction(0)):
    """Each frame of the clip is the one that is shown in the middle of its time."""
    for number, index in enumerate(indices(clip)):
        middle = (start + (number + Fraction(1, 2)) / clip.frame_rate) / TICK
        least, most = ticks[index], ticks[index + 1] if index + 1 < len(ticks) else middle
        assert least - Fraction(1, 20) <= middle <= most + Fraction(1, 20)  # Matroska stores milliseconds


@pytest.mark.parametrize("name", [*CODECS, "a.gif"])
def test_variable_rate_is_resampled_to_its_mean_by_the_time_stamps(tmp_path, caplog, name):
    if name == "a.gif":
        source = timed_gif(tmp_path / name, SLOWING, last=4)
    else:
        codec, options = CODECS[name]
        source = timed_video(tmp_path / name, SLOWING, codec=codec, options=options)
    clip = read_clip(source, frames=20, size=None)
    # a container may leave out how long the last frame is shown
    assert Fraction(24) / 57 / TICK >= clip.frame_rate >= Fraction(24) / 60 / TICK
    assert_in_time(clip, SLOWING)
    assert caplog.messages == [
        f"{source} has a variable frame rate (5 to 20 frames a second): "
        f"resampled to {float(clip.frame_rate):.4g} frames a second"
    ]


def test_start_and_stride_count_resampled_frames(tmp_path):
    source = timed_video(tmp_path / "a.mp4", SLOWING)
    whole = read_clip(source, frames=22, size=None)
    part = read_clip(source, frames=4, start=5, stride=4, size=None)
    assert np.array_equal(part.frames, whole.frames[5:18:4]) and part.frame_rate == whole.frame_rate / 4
    # the frames wanted have a constant rate, but the file says another: its mean counts
    first = read_clip(source, frames=3, size=None)
    assert np.array_equal(first.frames, whole.frames[:3]) and first.frame_rate == whole.frame_rate


def test_motion_keeps_its_speed(tmp_path):
    """The bar moves one pixel a tick, however often it is shown: 20 pixels a second."""
    ticks = [*range(20), *range(20, 42, 3)]
    clip = read_clip(timed_video(tmp_path / "a.mp4", ticks, shown=ticks), frames=24, size=None)
    places = np.array(indices(clip))  # of the bar
    for part in (slice(0, 12), slice(12, 24)):
        speed = np.polyfit(np.arange(12), places[part], 1)[0] * float(clip.frame_rate)
        assert speed == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("fps", [5, 10, Fraction(40, 3), 30])
@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "unstamped.avi", "vp9.webm"])
def test_fps_resamples_a_constant_rate(videos, name, fps, caplog):
    clip = read_clip(videos / name, frames=12, start=1, size=None, fps=Fraction(fps))
    assert indices(clip) == [ceil((number + Fraction(1, 2)) * 10 / fps) - 1 for number in range(1, 13)]
    assert clip.frame_rate == fps and not caplog.messages


def test_fps_resamples_a_variable_rate_and_is_the_rate_of_images(tmp_path):
    source = timed_video(tmp_path / "a.mp4", SLOWING)
    clip = read_clip(source, frames=20, start=3, size=None, fps=Fraction(8))
    assert clip.frame_rate == 8
    assert_in_time(clip, SLOWING, start=Fraction(3, 8))
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.fromarray(made_frame(index)).save(tmp_path / "images" / f"{index}.png")
    clip = read_clip(tmp_path / "images", frames=2, stride=3, size=None, fps=Fraction(24))
    assert indices(clip) == [0, 3] and clip.frame_rate == 8


@pytest.mark.parametrize("last", [1, 40])
def test_a_constant_rate_with_a_pause_at_the_end_stays_as_it_is(tmp_path, caplog, last):
    clip = read_clip(timed_gif(tmp_path / "a.gif", range(12), last), frames=12, size=None)
    assert indices(clip) == list(range(12)) and clip.frame_rate == 1 / TICK and not caplog.messages


@pytest.mark.parametrize("seconds", [-3, 7])
def test_the_first_time_stamp_may_be_any(videos, tmp_path, caplog, seconds):
    def shifted(number: int, packet: av.Packet) -> av.Packet:
        ticks = int(seconds / packet.time_base)
        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        return packet

    options = {"avoid_negative_ts": "disabled", "use_editlist": "0"}
    source = remuxed(videos / "plain.mp4", tmp_path / "a.mp4", shifted, **options)
    clip = read_clip(source, frames=20, size=None)
    assert indices(clip) == list(range(20)) and clip.frame_rate == 10 and not caplog.messages


def test_jitter_of_less_than_half_a_frame_changes_nothing():
    jitter = np.random.default_rng(0).integers(-9, 10, 500)
    times = [Fraction(33 * index + int(shift), 1000) for index, shift in enumerate(jitter)]
    assert resampled(times, Fraction(0), None, None).slots == range(500)
    times[250:] = [time + Fraction(2, 10) for time in times[250:]]
    late = resampled(times, Fraction(0), None, None)
    assert late.note and late.shown_at(late.count - 1) == 499


def test_packets_are_read_only_as_far_as_needed_at_a_constant_rate(videos):
    assert read_timeline(videos / "plain.mp4", 2).resampling.count < 40
    assert read_timeline(videos / "plain.mp4", 2, Fraction(20)).resampling.count < 80


def test_fps_setting():
    base = {"model": "small"}
    given = [Settings(**base), *(Settings(**base, fps=fps) for fps in (24, 12.5, "30000/1001"))]
    assert [settings.clip_rate for settings in given] == [None, 24, Fraction(25, 2), Fraction(30000, 1001)]
    for wrong in ("fast", 0, -1, 1e9, "1/0", "nan", "24 ", True, 0.001, "1001"):
        with pytest.raises(SettingsError, match="fps: .* accepted: auto, or from 0.01 to 1000 frames"):
            Settings(**base, fps=wrong)
