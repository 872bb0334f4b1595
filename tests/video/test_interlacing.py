"""Interlaced videos are read without combs."""

import av
import numpy as np
import pytest
from tagged_videos import frames_of, said, written

from ditflow.video import read_clip


def bar(place):
    """A tall bright bar on a dark ground."""
    picture = np.full((96, 128, 3), 40, np.uint8)
    picture[20:76, place : place + 20] = 210
    return picture


FIELDS = {  # codec, pixel format, options of an interlaced video by which field is shown first
    "h264.mp4": ("libx264", "yuv420p", lambda first: {"crf": "6", "x264-params": f"{'tb'[first]}ff=1"}),
    "mpeg2.mkv": ("mpeg2video", "yuv420p", lambda first: {"flags": "+ildct+ilme", "b": "5M"}),
    "prores.mov": ("prores_ks", "yuv422p10le", lambda first: {"flags": "+ildct"}),
    "unflagged.mkv": ("ffv1", "yuv420p", lambda first: {}),  # only the container says it
}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", FIELDS)
def test_interlaced_is_deinterlaced(tmp_path, caplog, name, first):
    """The bar moves three pixels from one field to the next; `first` is the first row of the first field."""
    codec, pixels, options = FIELDS[name]
    arrays = [bar(10 + 6 * index) for index in range(10)]
    for index, picture in enumerate(arrays):
        picture[1 - first :: 2] = bar(13 + 6 * index)[1 - first :: 2]
    options = options(first) | ({"field_order": ("tt", "bb")[first]} if codec != "libx264" else {})
    pictures = frames_of(arrays, pixels=pixels)
    source = written(tmp_path / name, pictures, codec=codec, pixels=pixels, options=options)
    clip = read_clip(source, frames=10, size=None)
    for index, frame in enumerate(clip.frames[1:9, 24:72].astype(int), 1):
        combs = np.abs(frame - (np.roll(frame, 1, 0) + np.roll(frame, -1, 0)) / 2)[1:-1]
        assert combs.mean() < 1.5
        assert np.abs(frame - bar(10 + 6 * index)[24:72]).mean() < 3  # as the first field shows it
    assert said(caplog) == "deinterlaced"
    part = read_clip(source, frames=3, start=4, stride=2, size=None)
    assert np.abs(part.frames.astype(int) - clip.frames[4:9:2]).mean() < 1


def test_progressive_video_with_the_interlaced_flag_stays_as_it_is(tmp_path, caplog):
    options = {"crf": "6", "x264-params": "tff=1"}
    arrays = [bar(10 + 6 * index) for index in range(10)]
    source = written(tmp_path / "a.mp4", frames_of(arrays), codec="libx264", options=options)
    with av.open(str(source)) as container:
        expected = []
        for frame in container.decode(video=0):
            assert frame.interlaced_frame
            expected.append(frame.to_ndarray(format="rgb24"))
    clip = read_clip(source, frames=10, size=None)
    assert np.array_equal(clip.frames, expected) and not caplog.messages
