"""Image folders, image modes, sizes, and sources that cannot be read."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import COUNT, indices, made_frame
from PIL import Image

from ditflow.errors import DitflowError, SettingsError
from ditflow.video import Clip, read_clip
from ditflow.video.reading import source_shape


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
    exif[0x0112] = 6  # turn by a quarter clockwise for display
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
    assert str(caught.value).endswith(": use " + " or ".join(remedies))
    for remedy in remedies:
        words = remedy.replace("--", "").split()
        changed = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        asked = dict(frames=frames, start=start, stride=stride) | changed
        assert len(read_clip(source, size=(16, 16), **asked).frames) == asked["frames"]


@pytest.mark.parametrize("least", [1, 2, 9, 40])
def test_every_remedy_is_accepted(tmp_path, least):
    """What is advised is long enough for a run, and can be read."""
    for index in range(COUNT):
        Image.fromarray(made_frame(index, 2, 2)).save(tmp_path / f"{index}.png")
    grid = [
        (frames, start, stride) for frames in (9, 40, 60) for start in (0, 3, 36, 99) for stride in (1, 4, 20)
    ]
    refused = 0
    for frames, start, stride in grid:
        if frames < least or start + (frames - 1) * stride < COUNT:
            continue
        asked = dict(frames=frames, start=start, stride=stride)
        with pytest.raises(DitflowError, match=": use --") as caught:
            read_clip(tmp_path, size=None, least_frames=least, **asked)
        refused += 1
        for remedy in str(caught.value).rpartition(": use ")[2].split(" or "):
            words = remedy.replace("--", "").split()
            changed = asked | dict(zip(words[::2], map(int, words[1::2]), strict=True))
            assert changed["frames"] >= least and changed != asked
            assert (
                len(read_clip(tmp_path, size=None, least_frames=least, **changed).frames) == changed["frames"]
            )
    assert refused > 10


def test_too_few_frames_at_the_given_rate(videos):
    with pytest.raises(DitflowError, match="only 4 frames .* at 1 frames a second.* at least 9: .* --fps"):
        read_clip(videos / "plain.mp4", frames=9, size=None, least_frames=9, fps=Fraction(1))


@pytest.mark.parametrize("decoder", ["any", "pyav"])
def test_a_file_cut_short_has_the_frames_that_decode(videos, tmp_path, monkeypatch, decoder):
    if decoder == "pyav":
        monkeypatch.setitem(sys.modules, "decord", None)
    content = (videos / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert container.streams.video[0].frames == COUNT  # as the header says
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


@pytest.mark.parametrize("name", ["plain.mp4", "vp8.webm", "unstamped.avi", "folder"])
def test_the_shape_of_a_source(videos, tmp_path, name):
    if name == "folder":
        for index in range(COUNT):
            Image.fromarray(made_frame(index)).save(tmp_path / f"{index}.png")
    source = tmp_path if name == "folder" else videos / name
    assert source_shape(source) == (COUNT, 64, 48)
    # images have the rate that is asked for
    assert source_shape(source, Fraction(5)).frames == (COUNT if name == "folder" else COUNT // 2)


def test_the_shape_of_a_source_in_memory():
    frames = np.stack([made_frame(index) for index in range(3)])
    assert source_shape(Clip(frames, Fraction(8))) == (3, 64, 48)


def test_the_shape_of_what_is_shown_upright(tmp_path):
    exif_turned(tmp_path / "one.png")
    assert source_shape(tmp_path) == (1, 48, 64)


def test_the_shape_of_a_video_without_intact_frames(videos, tmp_path):
    content = bytearray((videos / "front.mp4").read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = b"\xff" * len(content[start:])
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(DitflowError, match="damaged.mp4: none of its frames can be read"):
        source_shape(tmp_path / "damaged.mp4")


def two_sizes(path: Path) -> None:
    path.mkdir()
    for index, size in enumerate([(8, 8), (8, 6)]):
        Image.new("RGB", size).save(path / f"{index}.png")


def broken_image(path: Path) -> None:
    path.mkdir()
    (path / "a.png").write_bytes(b"no image")


UNREADABLE = {
    "missing.mp4": (lambda path: None, "does not exist"),
    "empty": (Path.mkdir, "has no images"),
    "broken": (broken_image, "a.png cannot be read as an image"),
    "two_sizes": (two_sizes, "1.png is 8x6, but the images before it are 8x8: give a size"),
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
    with pytest.raises(DitflowError, match="strange.mp4 uses a codec"):
        read_clip(tmp_path / "strange.mp4", frames=1, size=None)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"start": -1}, {"stride": 0}, {"fit": "squeeze"}])
def test_senseless_values_are_settings_errors(videos, wrong):
    with pytest.raises(SettingsError, match=str(next(iter(wrong.values())))):
        read_clip(videos / "plain.mp4", **({"frames": 1, "size": None} | wrong))
