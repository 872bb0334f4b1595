"""Reading a mask: a video, a folder or one image, aligned with the clip in time and place."""

import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import quick_settings

from ditflow import video
from ditflow.errors import SettingsError
from ditflow.models.protocols import Grid
from ditflow.motion.mask_file import read_mask

FRAMES, HEIGHT, WIDTH = 20, 64, 96
GRID = Grid(3, 4, 6)


def boxes(frames=FRAMES, height=HEIGHT, width=WIDTH):
    """A box of 8 x 12 that moves 3 pixels to the right in each frame, near the top."""
    mask = np.zeros((frames, height, width), bool)
    for frame, picture in enumerate(mask):
        picture[2:10, 3 * frame : 3 * frame + 12] = True
    return mask


def saved(path, mask, levels=(0, 255)):
    """A folder, a video or an image of a mask, by the path's suffix; `levels` of grey off and on."""
    pictures = np.where(mask, levels[1], levels[0]).astype(np.uint8)[..., None].repeat(3, axis=-1)
    if mask.ndim == 2:
        Image.fromarray(pictures).save(path)
    else:
        video.write_clip(video.Clip(pictures, Fraction(8)), path)
    return path


def texture(height, width, seed=0):
    """Random blots of about 4 pixels, [height, width, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4), np.uint8)
    grey = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(grey.convert("RGB"))


@pytest.fixture
def source(tmp_path):
    """A clip of 20 frames: a textured square of 32 x 32 moves 2 pixels to the right over another texture."""
    ground, inside = texture(HEIGHT, WIDTH), texture(32, 32, seed=1)
    frames = np.stack([ground] * FRAMES)
    for frame, picture in enumerate(frames):
        picture[16:48, 8 + 2 * frame : 40 + 2 * frame] = inside
    path = tmp_path / "clip"
    video.write_clip(video.Clip(frames, Fraction(8)), path)
    return path


@pytest.fixture
def read(source, small_folder, caplog):
    """Reads a mask for the clip; returns it and what was said."""

    def reading(path, invert=False, **changes):
        settings = quick_settings(source, small_folder, **{"frames": FRAMES, "size": "96x64"} | changes)
        names = "frames", "start", "stride", "size", "fit"
        clip = video.read_clip(
            settings.video, fps=settings.clip_rate, **{name: getattr(settings, name) for name in names}
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, "ditflow"):
            mask = read_mask(str(path), clip, settings, GRID, whole=Path(settings.video), invert=invert)
        assert mask.dtype == bool and mask.shape == clip.frames.shape[:3]
        return mask, caplog.messages

    return reading


@pytest.mark.parametrize("name", ["mask", "mask.mp4", "mask.gif"])
def test_a_video_or_folder_is_used_from_the_start_with_the_stride_of_the_clip(read, tmp_path, name):
    path = saved(tmp_path / name, boxes())
    mask, said = read(path, frames=9, start=1, stride=2)
    assert np.array_equal(mask, boxes()[1:18:2])
    assert not said


def test_a_mask_is_resampled_as_the_clip_is(read, source, tmp_path):
    frames = video.read_clip(source, frames=FRAMES, size=None).frames
    video.write_clip(video.Clip(frames, Fraction(8)), tmp_path / "clip.mp4")
    path = saved(tmp_path / "mask.mp4", boxes())
    mask, said = read(path, video=str(tmp_path / "clip.mp4"), fps="4", frames=9, start=1)
    shown = [int(np.flatnonzero(frame[5])[0]) // 3 for frame in mask]  # by the place of the box
    assert np.diff(shown).tolist() == [2] * 8 and shown[0] in (1, 2, 3)
    assert np.array_equal(mask, boxes()[shown]) and not said
    folder = saved(tmp_path / "mask", boxes())  # its images are taken as they are
    assert read(folder, video=str(tmp_path / "clip.mp4"), fps="4", frames=9)[1] == [
        f"mask {folder} has 20 frames and the clip 10, at 4 frames a second: the rest is left out"
    ]


def test_the_last_frame_of_a_shorter_mask_is_repeated(read, tmp_path):
    path = saved(tmp_path / "mask", boxes(frames=10))
    mask, said = read(path, frames=9, start=1, stride=2)
    assert np.array_equal(mask, boxes()[[1, 3, 5, 7, 9, 9, 9, 9, 9]])
    assert said == [
        f"mask {path} has 10 frames and the clip 20: where the mask ends, its last frame is repeated"
    ]


@pytest.mark.parametrize("length", [80, 21])
def test_the_rest_of_a_longer_mask_is_left_out(read, tmp_path, length):
    path = saved(tmp_path / "mask.mp4", boxes(frames=length))
    mask, said = read(path)
    assert np.array_equal(mask, boxes())
    assert said == [f"mask {path} has {length} frames and the clip 20: the rest is left out"]


def test_a_mask_that_ends_before_the_first_used_frame_is_refused(read, tmp_path):
    path = saved(tmp_path / "mask", boxes(frames=4))
    with pytest.raises(SettingsError, match=r"has 4 frames, but the clip is used from frame 4 on: give one"):
        read(path, frames=9, start=4)


def test_a_mask_of_another_size_is_fitted_as_the_clip_is(read, tmp_path):
    path = saved(tmp_path / "mask", boxes().repeat(2, axis=1).repeat(2, axis=2))
    mask, said = read(path)
    assert np.array_equal(mask, boxes())
    assert said == [
        f"mask {path} is 192x128 and the clip 96x64: the mask is fitted as the clip is, by --fit crop"
    ]
    square = np.zeros((FRAMES, 96, 96), bool)  # 16 rows are cut at the top and bottom
    square[:, 16:32, :48] = square[:, :16, 48:] = True
    mask, _ = read(saved(tmp_path / "square", square))
    assert mask[:, :16, :48].all() and mask.sum() == FRAMES * 16 * 48


@pytest.mark.parametrize("invert", [False, True])
def test_padding_does_not_count(read, source, tmp_path, invert):
    half = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    half[:, :, :48] = True
    path = saved(tmp_path / "mask", half)
    mask, said = read(path, invert=invert, fit="pad", size="96x96")  # bars of 16 rows
    expected = np.pad(half != invert, ((0, 0), (16, 16), (0, 0)))
    assert np.array_equal(mask, expected) and not said
    small = saved(tmp_path / "small", half[:, :, 16:80])  # a square: bars of 16 columns
    mask, _ = read(small, invert=invert, fit="pad")
    assert np.array_equal(mask, np.pad(half[:, :, 16:80] != invert, ((0, 0), (0, 0), (16, 16))))
    whole = saved(tmp_path / "whole", np.full((FRAMES, 96, 96), not invert))  # white where the clip has bars
    mask, said = read(whole, invert=invert, fit="pad", size="96x96")
    assert mask[:, 16:80].all() and mask.sum() == FRAMES * HEIGHT * WIDTH
    assert said[-1] == f"mask {whole} covers everything, so it changes nothing: leave out --mask"
    plain = saved(tmp_path / "plain.png", np.full((HEIGHT, WIDTH), not invert))
    mask, said = read(plain, invert=invert, fit="pad", size="96x96")
    assert mask[:, 16:80].all() and mask.sum() == FRAMES * HEIGHT * WIDTH
    assert said == [f"mask {plain} covers everything, so it changes nothing: leave out --mask"]


def test_white_is_above_half_in_grey(read, tmp_path):
    stripes = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # red is 76 in grey, green 150, blue 29, yellow 226
    for place, colour in enumerate([(127,) * 3, (128,) * 3, "red", "lime", "blue", "yellow"]):
        image = Image.new("RGB", (16, HEIGHT), colour)
        stripes[:, 16 * place : 16 * place + 16] = np.asarray(image)
    (tmp_path / "mask").mkdir()
    for frame in range(FRAMES):
        Image.fromarray(stripes).save(tmp_path / "mask" / f"{frame:02}.png")
    mask, _ = read(tmp_path / "mask")
    assert mask[0, 0, 8::16].tolist() == [False, True, False, True, False, True]
    assert (mask == mask[:1, :1]).all()


def square(frame):
    """Where the clip's square is."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[16:48, 8 + 2 * frame : 40 + 2 * frame] = True
    return mask


def overlap(found, true):
    return (found & true).sum() / (found | true).sum()


def test_one_image_is_the_mask_of_the_first_used_frame_and_is_followed(read, tmp_path):
    path = saved(tmp_path / "mask.png", square(3))
    mask, said = read(path, frames=9, start=3, stride=2)
    assert np.array_equal(mask[0], square(3)) and not said
    for frame, found in enumerate(mask):
        assert overlap(found, square(3 + 2 * frame)) > 0.8


def test_what_is_not_the_followed_part_counts_if_it_is_inverted(read, tmp_path):
    path = saved(tmp_path / "mask.png", square(0))
    part, _ = read(path)
    mask, said = read(path, invert=True)
    assert np.array_equal(mask, ~part) and not said


def test_a_size_and_a_clear_part_of_one_image(read, tmp_path):
    pixels = np.full((2 * HEIGHT, 2 * WIDTH, 4), 255, np.uint8)
    pixels[..., 3] = 255 * square(0).repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask, said = read(tmp_path / "mask.png")
    assert np.array_equal(mask[0], square(0)) and overlap(mask[-1], square(19)) > 0.7
    (line,) = said
    assert line.startswith(f"mask {tmp_path / 'mask.png'} is 192x128 and the clip 96x64")


def test_says_from_which_frame_the_white_part_is_lost(read, source, tmp_path):
    frames = np.stack([np.roll(texture(HEIGHT, 192), -4 * frame, axis=1) for frame in range(FRAMES)])
    video.write_clip(video.Clip(frames[:, :, :WIDTH], Fraction(8)), tmp_path / "pan")
    part = np.zeros((HEIGHT, WIDTH), bool)
    part[16:48, :32] = True  # outside from frame 8 on
    path = saved(tmp_path / "mask.png", part)
    mask, (line,) = read(path, video=str(tmp_path / "pan"))
    lost = int(line.split("from frame ")[1].split()[0])
    assert line.startswith(f"mask {path}: ") and "of 20 on" in line and lost in (7, 8, 9)
    assert mask[lost - 1].any() and not mask[lost:].any()


def test_a_part_that_flow_cannot_see_counts_in_the_first_frame(read, tmp_path):
    dot = np.zeros((4 * HEIGHT, 4 * WIDTH), bool)  # flow is computed at 360 x 240
    dot[100, 100] = True
    mask, said = read(saved(tmp_path / "mask.png", dot), size="384x256")
    assert np.array_equal(mask[0], dot) and not mask[1:].any()
    assert any("not found from frame 1 of 20 on" in line for line in said)


NOTHING = np.zeros((FRAMES, HEIGHT, WIDTH), bool)


@pytest.mark.parametrize("one", [False, True], ids=["folder", "image"])
def test_a_mask_in_which_nothing_counts_is_refused(read, tmp_path, one):
    black = saved(tmp_path / ("black.png" if one else "black"), NOTHING[0] if one else NOTHING)
    white = saved(tmp_path / ("white.png" if one else "white"), ~NOTHING[0] if one else ~NOTHING)
    with pytest.raises(SettingsError, match=r"nothing counts; paint white \(above half of 255 in grey\)"):
        read(black)
    with pytest.raises(SettingsError, match="nothing counts; it is inverted, so paint black") as found:
        read(white, invert=True)
    assert str(found.value).startswith(f"mask {white}: ") and "\n" not in str(found.value)
    for path, invert in ((white, False), (black, True)):
        mask, said = read(path, invert)
        assert mask[0].all()
        assert said == [f"mask {path} covers everything, so it changes nothing: leave out --mask"]


def test_white_that_is_cut_off_does_not_count(read, tmp_path):
    tall = np.zeros((192, 96), bool)
    tall[:40] = True
    with pytest.raises(SettingsError, match="nothing counts"):
        read(saved(tmp_path / "mask.png", tall))


def test_a_mask_with_something_in_one_frame_is_accepted(read, tmp_path):
    one = NOTHING.copy()
    one[5] = boxes()[5]
    mask, said = read(saved(tmp_path / "mask", one))
    assert np.array_equal(mask, one) and not said
    with pytest.raises(SettingsError, match="nothing counts"):  # in none of the used frames
        read(tmp_path / "mask", frames=9, stride=2)


def text(path):
    path.write_text("not a picture")


UNREADABLE = {
    "none.png": (lambda path: None, "does not exist"),
    "none.mp4": (lambda path: None, "does not exist"),
    "notes.txt": (text, "cannot be read as a video"),
    "broken.png": (text, "cannot be read as an image"),
    "empty.png": (lambda path: path.touch(), "is empty"),
    "folder": (lambda path: path.mkdir(), "has no images"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_in_one_line(read, tmp_path, name):
    make, said = UNREADABLE[name]
    make(tmp_path / name)
    with pytest.raises(SettingsError) as found:
        read(tmp_path / name)
    message = str(found.value)
    assert message.startswith(f"mask {tmp_path / name} {said}") and "\n" not in message
    assert message.endswith("a mask is a video, a folder of images or one image")
