"""Reading chosen frames from every kind of video file."""

import struct
import sys
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from made_videos import COUNT, HEIGHT, KINDS, WIDTH, indices, made_frame, made_video, remuxed
from PIL import Image

from ditflow.errors import DitflowError
from ditflow.video import decoding, read_clip


@pytest.mark.parametrize("name", [*KINDS, "odd.mkv"])
@pytest.mark.parametrize(("start", "stride", "frames"), [(0, 1, COUNT), (13, 3, 6), (25, 1, 2)])
def test_reads_the_frames_asked_for_in_every_kind_of_file(videos, name, start, stride, frames):
    clip = read_clip(videos / name, frames=frames, start=start, stride=stride, size=None)
    assert indices(clip) == list(range(start, start + frames * stride, stride))
    assert clip.frame_rate == Fraction(10, stride)
    if name != "grey.mkv":
        error = np.abs(clip.frames[0].astype(int) - made_frame(start, *clip.frames.shape[1:3]))
        assert error.mean() < 4


@pytest.mark.parametrize("name", [*KINDS, "odd.mkv"])
def test_decord_and_pyav_give_the_same_frames(videos, name, monkeypatch):
    pytest.importorskip("decord")
    for start, stride, frames in [(0, 1, COUNT), (3, 5, 7), (11, 2, 9)]:
        wanted = dict(frames=frames, start=start, stride=stride, size=None)
        by_decord = read_clip(videos / name, **wanted)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "decord", None)
            by_pyav = read_clip(videos / name, **wanted)
        assert np.array_equal(by_decord.frames, by_pyav.frames)
        assert by_decord.frame_rate == by_pyav.frame_rate


@pytest.mark.parametrize("name", ["plain.mp4", "open_groups.mkv", "intra_refresh.mkv", "vp9.webm"])
def test_decord_reads_from_the_beginning_and_pyav_takes_over_when_it_fails(videos, name, monkeypatch):
    decord = pytest.importorskip("decord")
    expected = read_clip(videos / name, frames=6, start=2, size=None)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_by_pyav", None)
        read_clip(videos / name, frames=6, start=2, size=None)

    class Broken(decord.VideoReader):
        used = 0

        def next(self):
            Broken.used += 1
            raise decord.DECORDError("broken")

    monkeypatch.setattr(decord, "VideoReader", Broken)
    assert np.array_equal(read_clip(videos / name, frames=6, start=2, size=None).frames, expected.frames)
    assert Broken.used == 1
    read_clip(videos / name, frames=2, start=30, size=None)
    assert Broken.used == 1  # not used: it would decode every frame before these


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "open_groups.mkv", "vp9.webm"])
def test_decodes_from_the_key_frame_before_start_to_the_last_frame(videos, name, without_decord, decoded):
    read_clip(videos / name, frames=3, start=22, stride=2, size=None)
    assert len(decoded) == 26 - 16 + 1  # key frame 16, last frame 26


def test_frames_are_resized_as_they_are_read(tmp_path, without_decord):
    source = made_video(tmp_path / "large.mkv", height=240, width=320)
    tracemalloc.start()
    read_clip(source, frames=COUNT, size=(16, 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 240 * 320 * 3


# display matrix, and the numpy operation with the same effect
TURNS = {
    "quarter": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "half": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "three_quarters": ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
    "upside_down": ((1, 0, 0, -1), lambda frame: frame[::-1]),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    "transverse": ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_rotated_by_metadata_is_read_upright(videos, tmp_path, turn):
    (a, b, c, d), turned = TURNS[turn]
    content = bytearray((videos / "plain.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44
    fixed = [value << 16 for value in (a, b, 0, c, d, 0, 0, 0)]
    content[matrix : matrix + 36] = struct.pack(">9i", *fixed, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    upright = read_clip(videos / "plain.mp4", frames=2, start=1, size=None)
    clip = read_clip(tmp_path / "turned.mp4", frames=2, start=1, size=None)
    assert np.array_equal(clip.frames, np.stack([turned(frame) for frame in upright.frames]))


def test_frames_hidden_by_an_edit_list_do_not_count(videos, tmp_path):
    def earlier(number: int, packet: av.Packet) -> av.Packet:
        ticks = int(Fraction(3, 10) / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        return packet

    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    edited = remuxed(videos / "plain.mp4", tmp_path / "edited.mp4", earlier, **options)
    assert indices(read_clip(edited, frames=3, size=None)) == [3, 4, 5]
    assert indices(read_clip(edited, frames=2, start=20, size=None)) == [23, 24]


def test_frames_hidden_in_vp8_do_not_count(videos, tmp_path):
    def hidden(number: int, packet: av.Packet) -> av.Packet:
        content = bytearray(bytes(packet))
        if number in (5, 21):
            content[0] &= ~0x10
        changed = av.Packet(bytes(content))
        # a hidden frame has no time of its own
        ticks = int(((number > 5) + (number > 21)) * Fraction(1, 10) / packet.time_base) + (number in (5, 21))
        changed.pts, changed.dts, changed.time_base = packet.pts - ticks, packet.dts - ticks, packet.time_base
        changed.is_keyframe = packet.is_keyframe
        return changed

    changed = remuxed(videos / "vp8.webm", tmp_path / "hidden.webm", hidden)
    assert indices(read_clip(changed, frames=7, size=None)) == [0, 1, 2, 3, 4, 6, 7]
    assert indices(read_clip(changed, frames=3, start=19, size=None)) == [20, 22, 23]
    with pytest.raises(DitflowError, match="only 38 frames"):
        read_clip(changed, frames=40, size=None)


@pytest.mark.parametrize("name", ["open_groups.mkv", "leading.mkv"])
def test_a_cut_begins_with_its_first_key_frame(videos, tmp_path, name):
    def after_the_cut(number: int, packet: av.Packet) -> av.Packet | None:
        return packet if number >= first_key else None

    with av.open(str(videos / name)) as container:
        first_key = [packet.is_keyframe for packet in container.demux(video=0)].index(True, 1)
    cut = remuxed(videos / name, tmp_path / "cut.mkv", after_the_cut)
    assert indices(read_clip(cut, frames=3, size=None)) == [8, 9, 10]
    assert indices(read_clip(cut, frames=2, start=12, size=None)) == [20, 21]


def test_transparent_video_shows_on_black(tmp_path):
    with av.open(str(tmp_path / "clear.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "argb"
        pixels = np.full((HEIGHT, WIDTH, 4), (250, 200, 0, 0), np.uint8)
        pixels[:, 32:, 3] = 255
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="argb"))
        )
        container.mux(stream.encode())
    frame = read_clip(tmp_path / "clear.mov", frames=1, size=None).frames[0]
    assert (frame[:, :32] == 0).all() and (frame[:, 32:] == (250, 200, 0)).all()


def test_gif_rate_comes_from_its_durations_and_clear_parts_show_on_black(tmp_path):
    pictures = [Image.fromarray(np.full((16, 16, 4), (250, 40 * i, 0, 255), np.uint8)) for i in range(6)]
    for picture in pictures:
        picture.paste((0, 0, 0, 0), (0, 0, 8, 16))
    durations = [60, 70, 60, 70, 60, 60]
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=durations, disposal=2
    )
    clip = read_clip(tmp_path / "a.gif", frames=3, start=1, stride=2, size=None)
    assert clip.frame_rate == Fraction(6000, sum(durations)) / 2
    assert (clip.frames[:, :, :8] == 0).all()
    assert np.abs(clip.frames[:, 4, 12, 1].astype(int) - [40, 120, 200]).max() < 8


def test_rate_is_measured_if_the_declared_one_is_wrong(videos, tmp_path):
    with av.open(str(tmp_path / "recorded.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=1000, options={"lag-in-frames": "0"})
        stream.width, stream.height = WIDTH, HEIGHT
        for index in range(8):
            picture = av.VideoFrame.from_ndarray(made_frame(index), format="rgb24")
            picture.pts = 40 * index
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert read_clip(tmp_path / "recorded.webm", frames=4, size=None).frame_rate == 25


def test_fractional_rates_are_kept_exactly(tmp_path):
    source = made_video(tmp_path / "ntsc.mp4", rate=Fraction(30000, 1001))
    assert read_clip(source, frames=3, stride=2, size=None).frame_rate == Fraction(15000, 1001)
