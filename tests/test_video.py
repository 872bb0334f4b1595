import os
import struct
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ditflow.errors import DitflowError, SettingsError
from ditflow.video import Clip, decoding, read_clip, read_metadata, side_by_side, write_clip

COUNT, HEIGHT, WIDTH = 40, 48, 64
H264 = {"crf": "10", "g": "8", "bf": "2", "sc_threshold": "0"}
OPEN_GROUPS = {"x264-params": "keyint=8:min-keyint=8:open-gop=1:bframes=3:scenecut=0"}
LEADING = {"x265-params": "log-level=none:keyint=8:min-keyint=8:open-gop=0:radl=2:scenecut=0:b-adapt=0"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}
VP9 = {"g": "8", "b": "1M", "lag-in-frames": "8", "auto-alt-ref": "1"}

KINDS = {  # file: codec, pixel format, codec options
    "plain.mp4": ("libx264", "yuv420p", H264),
    "plain.mov": ("libx264", "yuv420p", H264),
    "plain.mkv": ("libx264", "yuv420p", H264),
    "full_range.mp4": ("libx264", "yuvj420p", H264),
    "open_groups.mkv": ("libx264", "yuv420p", OPEN_GROUPS),
    "leading.mkv": ("libx265", "yuv420p", LEADING),
    "intra_refresh.mkv": ("libx264", "yuv420p", INTRA_REFRESH),
    "vp9.webm": ("libvpx-vp9", "yuv420p", VP9),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "8", "b": "1M"}),
    "unstamped.avi": ("libx264", "yuv420p", H264),
    "reordered.avi": ("mpeg4", "yuv420p", {"g": "8", "bf": "2", "b": "2M"}),
    "ten_bit.mp4": ("libx264", "yuv420p10le", H264),
    "grey.mkv": ("ffv1", "gray", {}),
    "alpha.mov": ("qtrle", "argb", {}),
}


def made_frame(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Flat grey that says its index, a quarter of red at the upper left, a green bar that moves."""
    frame = np.full((height, width, 3), 8 + 6 * index, np.uint8)
    frame[: height // 2, : width // 2] = (200, 30, 30)
    frame[-height // 4 :, index % (width - 4) : index % (width - 4) + 4] = (30, 200, 30)
    return frame


def indices(clip: Clip) -> list[int]:
    return [round((float(frame[4, -4].mean()) - 8) / 6) for frame in clip.frames]


def made_video(
    path: Path, codec="libx264", pixels="yuv420p", options=H264, *, height=HEIGHT, width=WIDTH, rate=10
):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for index in range(COUNT):
            picture = av.VideoFrame.from_ndarray(made_frame(index, height, width), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def remuxed(source: Path, target: Path, change=lambda number, packet: packet, **options: str) -> Path:
    """The packets in a new file, each as `change` gives it back."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        for number, packet in enumerate(packets):
            if packet := change(number, packet):
                packet.stream = copy
                new.mux(packet)
    return target


@pytest.fixture(scope="module")
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
    """Stamps of the frames that PyAV has decoded."""
    stamps, real = [], decoding.decoded_frames

    def recorded(*arguments, **keywords):
        for frame in real(*arguments, **keywords):
            stamps.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "decoded_frames", recorded)
    return stamps


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
def test_decord_reads_from_the_beginning_and_pyav_where_it_fails(videos, name, monkeypatch):
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
    assert Broken.used == 1  # it would decode all that comes before


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


# what the display matrix says, the numpy operation that does it
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
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
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
    durations = [40, 80, 120, 40, 40, 40]
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=durations, disposal=2
    )
    clip = read_clip(tmp_path / "a.gif", frames=3, start=1, stride=2, size=None)
    assert clip.frame_rate == Fraction(6000, sum(durations)) / 2
    assert (clip.frames[:, :, :8] == 0).all()
    assert np.abs(clip.frames[:, 4, 12, 1].astype(int) - [40, 120, 200]).max() < 8


def test_rate_is_measured_where_the_declared_one_is_wild(videos, tmp_path):
    with av.open(str(tmp_path / "recorded.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=1000, options={"lag-in-frames": "0"})
        stream.width, stream.height = WIDTH, HEIGHT
        for index in range(8):
            picture = av.VideoFrame.from_ndarray(made_frame(index), format="rgb24")
            picture.pts = 40 * index
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert read_clip(tmp_path / "recorded.webm", frames=4, size=None).frame_rate == 25


def test_broken_rates_are_kept_exactly(tmp_path):
    source = made_video(tmp_path / "ntsc.mp4", rate=Fraction(30000, 1001))
    assert read_clip(source, frames=3, stride=2, size=None).frame_rate == Fraction(15000, 1001)


def test_image_folder_in_natural_order_of_any_naming(tmp_path):
    names = ["Frame1.png", "frame2.JPG", "frame03.bmp", "frame10.webp", "frame20.tif", "frame100.jpeg"]
    for index, name in reversed(list(enumerate(names))):
        Image.fromarray(made_frame(index)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._frame1.png").write_bytes(b"no image")
    clip = read_clip(tmp_path, frames=6, size=None)
    assert indices(clip) == [0, 1, 2, 3, 4, 5] and clip.frame_rate == 8
    clip = read_clip(tmp_path, frames=2, start=1, stride=3, size=None)
    assert indices(clip) == [1, 4] and clip.frame_rate == Fraction(8, 3)


def exif_turned(path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter clockwise
    Image.fromarray(made_frame(5)).save(path, exif=exif)
    return np.rot90(made_frame(5), -1)


def with_mode(mode: str):
    def save(path: Path) -> np.ndarray:
        image = Image.fromarray(made_frame(5)).convert(mode)
        image.save(path)
        return np.asarray(image.convert("RGB"))

    return save


def sixteen_bit_grey(path: Path) -> np.ndarray:
    levels = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    Image.fromarray(levels.astype(np.uint16) * 257).save(path)
    return levels[..., None].repeat(3, axis=-1)


def half_clear(path: Path) -> np.ndarray:
    pixels = np.dstack((made_frame(20), np.full((48, 64), 255, np.uint8)))
    pixels[:24, :, 3] = 0
    Image.fromarray(pixels).save(path)
    return np.where(pixels[..., 3:] == 0, 0, pixels[..., :3])


def half_clear_grey(path: Path) -> np.ndarray:
    pixels = np.full((48, 64, 2), 255, np.uint8)
    pixels[:24, :, 1] = 0
    Image.fromarray(pixels, "LA").save(path)
    return pixels[..., 1:].repeat(3, axis=-1)


def half_clear_palette(path: Path) -> np.ndarray:
    clear = np.zeros((48, 64), np.uint8)
    clear[24:] = 1
    image = Image.fromarray(clear, "P")
    image.putpalette([250, 200, 0, 10, 20, 30])
    image.save(path, transparency=0)
    return np.where(clear[..., None] == 0, 0, (10, 20, 30))


IMAGES = {
    "rgb": with_mode("RGB"),
    "grey": with_mode("L"),
    "black_and_white": with_mode("1"),
    "palette": with_mode("P"),
    "sixteen_bit_grey": sixteen_bit_grey,
    "half_clear": half_clear,
    "half_clear_grey": half_clear_grey,
    "half_clear_palette": half_clear_palette,
    "exif_turned": exif_turned,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_every_mode_give_upright_rgb(tmp_path, kind):
    expected = IMAGES[kind](tmp_path / "one.png")
    assert np.array_equal(read_clip(tmp_path, frames=1, size=None).frames[0], expected)


def test_fits(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)  # four stripes of 20
    for index, colour in enumerate([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]):
        picture[:, 20 * index : 20 * index + 20] = colour
    Image.fromarray(picture).save(tmp_path / "one.png")

    def fitted(fit: str, size=(40, 40)) -> np.ndarray:
        return read_clip(tmp_path, frames=1, size=size, fit=fit).frames[0].astype(int)

    cropped, padded, stretched = fitted("crop"), fitted("pad"), fitted("stretch")
    assert np.array_equal(cropped, picture[:, 20:60])
    assert (padded[:10] == 0).all() and (padded[30:] == 0).all()
    assert np.abs(padded[20, [4, 14, 24, 34]] - picture[0, [10, 30, 50, 70]]).max() < 4
    assert np.abs(stretched[[[2], [38]], [4, 14, 24, 34]] - picture[0, [10, 30, 50, 70]]).max() < 4
    assert fitted("crop", (32, 64)).shape == (64, 32, 3)
    assert np.array_equal(fitted("crop", (80, 40)), picture)


def test_shrinking_does_not_alias(tmp_path):
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "one.png")
    frame = read_clip(tmp_path, frames=1, size=(16, 16), fit="stretch").frames[0]
    assert np.abs(frame.astype(int) - 127).max() < 8


@pytest.mark.parametrize("name", ["plain.mp4", "reordered.avi", "folder"])
@pytest.mark.parametrize(
    ("frames", "start", "stride", "remedies"),
    [
        (49, 0, 1, ["--frames 40"]),
        (10, 35, 1, ["--frames 5", "--start 30"]),
        (10, 4, 8, ["--frames 5", "--stride 3"]),
        (5, 20, 6, ["--frames 4", "--stride 4", "--start 15"]),
        (3, 50, 2, ["--start 35"]),
        (30, 50, 2, ["--start 0 --frames 20"]),
    ],
)
def test_too_few_frames_says_what_fits(videos, tmp_path, name, frames, start, stride, remedies):
    source = videos / name
    if name == "folder":
        source = tmp_path
        for index in range(COUNT):
            Image.fromarray(made_frame(index, 2, 2)).save(tmp_path / f"{index}.png")
    with pytest.raises(DitflowError) as caught:
        read_clip(source, frames=frames, start=start, stride=stride, size=None)
    assert f"only {COUNT} frames" in str(caught.value)
    assert str(caught.value).endswith("what fits is " + " or ".join(remedies))
    for remedy in remedies:
        words = remedy.replace("--", "").split()
        changed = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        asked = dict(frames=frames, start=start, stride=stride) | changed
        assert len(read_clip(source, size=(16, 16), **asked).frames) == asked["frames"]


@pytest.mark.parametrize("decoder", ["any", "pyav"])
def test_a_file_cut_short_has_the_frames_that_decode(videos, tmp_path, monkeypatch, decoder):
    if decoder == "pyav":
        monkeypatch.setitem(sys.modules, "decord", None)
    content = (videos / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert container.streams.video[0].frames == COUNT  # what its header says
    with pytest.raises(DitflowError, match=r"only \d+ frames can be read") as caught:
        read_clip(tmp_path / "cut.mp4", frames=COUNT, size=None)
    available = int(str(caught.value).split("only ")[1].split()[0])
    assert 8 < available < COUNT
    clip = read_clip(tmp_path / "cut.mp4", frames=available, size=None)
    assert indices(clip) == list(range(available))


def test_damage_in_the_middle_does_not_shift_the_frames_after_it(videos, tmp_path):
    content = bytearray((videos / "front.mp4").read_bytes())
    with av.open(str(videos / "front.mp4")) as container:
        spots = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in spots[17:20]:
        content[position : position + size] = b"\xff" * size
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(DitflowError, match=r"only (16|17|18|19) frames can be read"):
        read_clip(tmp_path / "damaged.mp4", frames=30, size=None)
    assert indices(read_clip(tmp_path / "damaged.mp4", frames=4, start=30, size=None)) == [30, 31, 32, 33]


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.int16), format="s16", layout="mono")
        silence.rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())


def two_sizes(path: Path) -> None:
    path.mkdir()
    for index, size in enumerate([(8, 8), (8, 6)]):
        Image.new("RGB", size).save(path / f"{index}.png")


def broken_image(path: Path) -> None:
    path.mkdir()
    (path / "a.png").write_bytes(b"no image")


UNREADABLE = {
    "missing.mp4": (lambda path: None, "does not exist"),
    "text.mp4": (lambda path: path.write_text("hello"), "is no video"),
    "nothing.mp4": (lambda path: path.touch(), "is no video"),
    "sound.mp4": (audio_only, "no video stream, only audio"),
    "empty": (Path.mkdir, "has no images"),
    "broken": (broken_image, "a.png is not an image"),
    "two_sizes": (two_sizes, "1.png is 8x6, the images before it 8x8: give a size"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_sources_are_named_in_one_line(tmp_path, name):
    make, message = UNREADABLE[name]
    make(tmp_path / name)
    with pytest.raises(DitflowError, match=message) as caught:
        read_clip(tmp_path / name, frames=2 if name == "two_sizes" else 1, size=None)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_codec_without_decoder_is_named(videos, tmp_path):
    content = (videos / "plain.mp4").read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzz")
    (tmp_path / "strange.mp4").write_bytes(content)
    with pytest.raises(DitflowError, match="strange.mp4 is of a codec"):
        read_clip(tmp_path / "strange.mp4", frames=1, size=None)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"start": -1}, {"stride": 0}, {"fit": "squeeze"}])
def test_senseless_values_are_settings_errors(videos, wrong):
    with pytest.raises(SettingsError, match=str(next(iter(wrong.values())))):
        read_clip(videos / "plain.mp4", **({"frames": 1, "size": None} | wrong))


def made_clip(count=12, height=64, width=96, rate=Fraction(8)) -> Clip:
    """Soft moving waves in colour and some noise: what a codec meets in real clips."""
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
    assert np.square(error.mean(axis=-1)).mean() < 8  # of brightness; crf 18 has 9
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
        "import sys; sys.path.insert(0, sys.argv[1]); from test_video import made_clip, write_clip;"
        "write_clip(made_clip(8), sys.argv[2])"
    )
    contents = set()
    for filling in ("1", "170"):  # what glibc fills fresh memory with
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
    """Frames of which the last cannot be had."""

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
    with pytest.raises(DitflowError, match="frames is a folder"):
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
