"""Videos are read as a player shows them: in shape and in colour."""

import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from made_videos import H264, made_frame, made_video
from PIL import Image
from tagged_videos import frames_of, said, written

from ditflow.errors import DitflowError
from ditflow.video import read_clip
from ditflow.video.display import display_of
from ditflow.video.tone import compressed, hlg_light, hlg_scene, pq_light, to_bt709

BLUE, GREY = (40, 60, 200), (128, 128, 128)


# shape


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi"])
@pytest.mark.parametrize(
    ("sar", "shown"),
    [("2/1", (128, 48)), ("1/2", (64, 96)), ("10/11", (64, 53)), ("64/45", (91, 48)), ("200/201", (64, 48))],
)
def test_pixels_that_are_not_square_are_scaled_to_the_display_shape(tmp_path, caplog, name, sar, shown):
    codec, options = ("mpeg4", {"b": "2M"}) if name == "a.avi" else ("libx264", H264)
    pictures = frames_of([made_frame(index) for index in range(9)])
    source = written(tmp_path / name, pictures, codec=codec, options=options, sar=Fraction(sar))
    clip = read_clip(source, frames=9, size=None)
    assert clip.frames.shape == (9, shown[1], shown[0], 3)
    expected = np.asarray(Image.fromarray(made_frame(8)).resize(shown))
    assert np.abs(clip.frames[8].astype(int) - expected).mean() < 5
    if shown == (64, 48):
        assert not caplog.messages
    else:
        assert said(caplog) == f"scaled from 64x48 to {shown[0]}x{shown[1]}"


def test_the_display_shape_is_what_is_fitted(tmp_path):
    pictures = frames_of([made_frame(0)])
    source = written(tmp_path / "a.mkv", pictures, codec="libx264", sar=Fraction(2))
    padded = read_clip(source, frames=1, size=(64, 64), fit="pad").frames[0]
    assert (padded[:20] == 0).all() and (padded[44:] == 0).all() and padded[30].max() > 100


@pytest.mark.parametrize(
    ("sar", "scale", "shown"),
    [(Fraction(1, 2), 1, (64, 96)), (None, 2, (64, 48)), (Fraction(2), 2, (128, 48))],
)
def test_turned_and_not_square_or_scaled(tmp_path, sar, scale, shown):
    """A quarter turn; the display matrix may hold a scale too."""
    pictures = frames_of([made_frame(index) for index in range(3)])
    source = written(tmp_path / "a.mp4", pictures, codec="libx264", options=H264, sar=sar)
    upright = read_clip(source, frames=1, size=None).frames[0]
    assert upright.shape == (shown[1], shown[0], 3)
    content = bytearray(source.read_bytes())
    matrix = content.index(b"tkhd") + 44
    side = scale << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, side, 0, -side, 0, 0, 0, 0, 1 << 30)
    source.write_bytes(content)
    assert np.array_equal(read_clip(source, frames=1, size=None).frames[0], np.rot90(upright, -1))


@pytest.mark.fault("pixels of a shape that makes the picture larger than the limit")
def test_absurd_pixel_shape_is_refused(tmp_path):
    pictures = frames_of([made_frame(0)])
    source = written(tmp_path / "a.mp4", pictures, codec="libx264", sar=Fraction(2))
    content = bytearray(source.read_bytes())
    ratio = content.index(b"pasp") + 4
    content[ratio : ratio + 8] = struct.pack(">II", 60_000, 1)
    source.write_bytes(content)
    with pytest.raises(
        DitflowError, match=r"aspect ratio of 60000: 64x48 is shown as 3840000x48, .*: correct"
    ):
        read_clip(source, frames=1, size=(32, 32))


# colour

MATRICES = {  # Kr, Kb of ITU-T H.273
    "BT.709": (1, 0.2126, 0.0722),
    "BT.470BG": (5, 0.299, 0.114),
    "BT.601": (6, 0.299, 0.114),
    "SMPTE 240M": (7, 0.212, 0.087),
    "BT.2020": (9, 0.2627, 0.0593),
}


def flat(rgb, red, blue, *, full, size, bits=8):
    """A frame of one colour from the definition of Y'CbCr."""
    r, g, b = np.array(rgb) / 255
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 * (1 - blue)), (r - luma) / (2 * (1 - red))
    most = 2**bits - 1
    if full:
        levels = [luma * most, *(2 ** (bits - 1) + most * part for part in chroma)]
    else:
        levels = [
            (16 + 219 * luma) * 2 ** (bits - 8),
            *((128 + 224 * part) * 2 ** (bits - 8) for part in chroma),
        ]
    (width, height), kind = size, np.uint8 if bits == 8 else np.uint16
    planes = [np.full(height * width, round(levels[0]), kind)]
    planes += [np.full(height * width // 4, round(level), kind) for level in levels[1:]]
    pixels = {8: "yuv420p", 10: "yuv420p10le", 12: "yuv420p12le"}[bits]
    frame = av.VideoFrame(width, height, pixels)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
        rows[:, : plane.width] = values.reshape(plane.height, plane.width)
        plane.update(rows.tobytes())
    return frame


def centre(clip):
    return clip.frames[0, clip.frames.shape[1] // 2, clip.frames.shape[2] // 2].astype(int)


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_matrix_and_range_are_the_files(tmp_path, name, full, bits, caplog):
    number, red, blue = MATRICES[name]
    frames = [flat(BLUE, red, blue, full=full, size=(96, 64), bits=bits) for _ in range(2)]
    tags = {"colorspace": number, "color_range": 2 if full else 1}
    source = written(tmp_path / "a.mkv", frames, pixels=frames[0].format.name, **tags)
    assert np.abs(centre(read_clip(source, frames=1, size=None)) - BLUE).max() <= 3
    assert not caplog.messages


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("size", "name"), [((96, 64), "BT.601"), ((720, 576), "BT.601"), ((1280, 720), "BT.709")]
)
def test_matrix_that_is_not_named_follows_from_the_size(tmp_path, size, name, full):
    _, red, blue = MATRICES[name]
    frames = [flat(BLUE, red, blue, full=full, size=size) for _ in range(2)]
    source = written(
        tmp_path / "a.mp4", frames, codec="libx264", options={"crf": "1"}, color_range=2 if full else 1
    )
    assert np.abs(centre(read_clip(source, frames=1, size=None)) - BLUE).max() <= 3


@pytest.mark.fault("a video in YCgCo or ICtCp")
@pytest.mark.parametrize("number", [8, 14])
def test_a_matrix_that_cannot_be_converted_is_refused(tmp_path, number):
    frames = [flat(BLUE, 0.2126, 0.0722, full=False, size=(96, 64))]
    source = written(tmp_path / "a.mkv", frames, colorspace=number)
    with pytest.raises(DitflowError, match=f"colours in matrix {number} of H.273, .*: convert it to BT.709"):
        read_clip(source, frames=1, size=None)


# colours of HDR: from the light that a screen shows to the signal, by the formulas of BT.2100

BT709_TO_BT2020 = np.array(
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)  # BT.2087, table 1


def pq_signal(light):  # cd/m2
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_signal(light):  # cd/m2 [3] on a screen of 1000 cd/m2
    luma = light @ (0.2627, 0.6780, 0.0593) / 1000
    scene = light / 1000 * luma ** ((1 - 1.2) / 1.2)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def sdr_signal(light):
    return (light / 203) ** (1 / 2.4)


SIGNALS = {"PQ": (16, pq_signal), "HLG": (18, hlg_signal), "SDR": (14, sdr_signal)}
KINDS = {
    "a.mkv": ("ffv1", {}),
    "a.mp4": ("libx264", {"crf": "1"}),
    "a.webm": ("libsvtav1", {"crf": "1", "preset": "12"}),
}


@pytest.mark.parametrize("rgb", [BLUE, GREY, (220, 60, 40), (10, 10, 10)])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("transfer", SIGNALS)
def test_hdr_and_wide_colours_are_shown_on_a_bt709_screen(tmp_path, caplog, transfer, name, rgb):
    number, signal = SIGNALS[transfer]
    light = BT709_TO_BT2020 @ (203 * (np.array(rgb) / 255) ** 2.4)
    _, red, blue = MATRICES["BT.2020"]
    frames = [flat(255 * signal(light), red, blue, full=False, size=(96, 64), bits=10) for _ in range(2)]
    codec, options = KINDS[name]
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": number}
    source = written(tmp_path / name, frames, codec=codec, pixels="yuv420p10le", options=options, **tags)
    assert np.abs(centre(read_clip(source, frames=1, size=None)) - rgb).max() <= 4
    changed = "converted from BT.2020's colours to BT.709's"
    assert said(caplog) == (changed if transfer == "SDR" else f"tone-mapped from HDR ({transfer}) to BT.709")


@pytest.fixture
def tagged(tmp_path):
    """Makes a video in HEVC with this tag and these colour properties."""

    def make(tag, **tags):
        pictures = frames_of([made_frame(index) for index in range(9)], pixels="yuv420p10le")
        options = {"x265-params": "log-level=none"}
        source = written(
            tmp_path / "a.mp4", pictures, codec="libx265", options=options, pixels="yuv420p10le", **tags
        )
        content = source.read_bytes()
        assert content.count(b"hev1") == 1
        source.write_bytes(content.replace(b"hev1", tag))
        return source

    return make


@pytest.mark.fault("a video in Dolby Vision's own colours")
@pytest.mark.parametrize("tag", [b"dvhe", b"dvh1"])
def test_dolby_vision_of_profile_5_is_refused(tagged, tag):
    with pytest.raises(
        DitflowError, match="is in Dolby Vision's own colours .profile 5., which cannot be read"
    ):
        read_clip(tagged(tag), frames=9, size=None)


def test_dolby_vision_of_other_profiles_is_read_as_its_base_layer(tagged, caplog):
    colours = {"color_trc": 16, "color_primaries": 9, "colorspace": 9}
    expected = read_clip(tagged(b"hvc1", **colours), frames=9, size=None)
    caplog.clear()
    found = read_clip(tagged(b"dvh1", **colours), frames=9, size=None)
    assert np.array_equal(found.frames, expected.frames)
    assert said(caplog) == "tone-mapped from HDR (PQ) to BT.709, without Dolby Vision's changes to it"


@pytest.mark.parametrize("name", ["DOVI_RPU_BUFFER", "DOVI_METADATA"])
def test_dolby_vision_is_known_by_what_its_frames_carry(tmp_path, name):
    source = written(tmp_path / "a.mkv", frames_of([made_frame(0)]))
    with av.open(str(source)) as container:
        frame = next(container.decode(video=0))
        stream = container.streams.video[0]
        said = {"format": frame.format, "width": 64, "height": 48, "colorspace": 2, "interlaced_frame": False}
        assert display_of(source, stream, frame)
        with pytest.raises(DitflowError, match="Dolby Vision"):
            display_of(source, stream, SimpleNamespace(**said, side_data={name: b"x"}))


def test_light_is_the_standards():
    nits = 203 * pq_light(np.array([0, 0.5081, 0.5807, 0.7518, 1]))
    assert nits == pytest.approx([0, 100, 203, 1000, 10000], rel=2e-3)
    assert hlg_scene(np.array([0, 0.5, 1])) == pytest.approx([0, 1 / 12, 1], abs=1e-6)
    # BT.2408: diffuse white is 75 % of the HLG signal, and 100 % is 1000 cd/m2
    shown = 203 * hlg_light(hlg_scene(np.array([[0.75] * 3, [1.0] * 3])))
    assert shown == pytest.approx(np.array([[203] * 3, [1000] * 3]), rel=5e-3)


def test_highlights_are_bent_and_not_cut():
    light = np.linspace(0, 1000 / 203, 200)[:, None] * (1, 0.5, 0.25)
    bent = compressed(light)
    assert np.allclose(bent[light[:, 0] <= 0.8], light[light[:, 0] <= 0.8])
    assert (np.diff(bent[:, 0]) > 0).all() and bent[-1, 0] == pytest.approx(1)
    assert np.allclose(bent[1:, 1] / bent[1:, 0], 0.5)
    assert np.abs(np.diff(bent[:, 0], 2)).max() < 0.01
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).repeat(3).reshape(1, -1, 3)
    for transfer in ("PQ", "HLG", "SDR"):
        shown = to_bt709(ramp, transfer)[0].astype(int)
        assert shown[0].max() == 0 and shown[-1].min() == 255 and (np.diff(shown, axis=0) >= 0).all()
        assert np.ptp(shown, axis=1).max() <= 1  # greys stay grey


# other kinds of pixels


@pytest.mark.parametrize("codec", ["prores_ks", "ffv1"])
def test_alpha_of_more_than_8_bits_shows_on_black(tmp_path, codec):
    pixels = np.full((48, 64, 4), (250, 200, 0, 0), np.uint8)
    pixels[:, 32:, 3] = 255
    name = "a.mov" if codec == "prores_ks" else "a.mkv"
    pictures = frames_of([pixels], "rgba", "yuva444p10le")
    source = written(tmp_path / name, pictures, codec=codec, pixels="yuva444p10le")
    frame = read_clip(source, frames=1, size=None).frames[0].astype(int)
    assert (frame[:, :30] <= 2).all() and np.abs(frame[:, 34:] - (250, 200, 0)).max() < 8


def test_ordinary_video_is_not_said_to_be_changed(videos, caplog):
    for name in ("plain.mp4", "ten_bit.mp4", "grey.mkv", "vp9.webm"):
        read_clip(videos / name, frames=9, size=None)
    made_video(videos / "tall.mkv", "ffv1", "yuv444p", {}, height=700, width=40)
    read_clip(videos / "tall.mkv", frames=2, size=None)
    assert not caplog.messages
