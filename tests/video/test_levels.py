"""Images of more than 8 bits are scaled by the range that they use, all of a clip alike."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from ditflow.errors import DitflowError
from ditflow.video import Clip, read_clip

SHAPE = (48, 64)
LEVELS = np.linspace(10, 245, SHAPE[0] * SHAPE[1]).reshape(SHAPE).round()  # of 255


def encoded(path, layout, pixels):
    """Write 16-bit colours, which Pillow cannot."""
    encoder = av.CodecContext.create({".png": "png", ".tif": "tiff"}[path.suffix], "w")
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base = layout, Fraction(1)
    plain = "rgba64le" if pixels.shape[2] == 4 else "rgb48le"
    picture = av.VideoFrame.from_ndarray(pixels.astype(np.uint16), format=plain).reformat(format=layout)
    picture.pts = 0
    path.write_bytes(b"".join(map(bytes, [*encoder.encode(picture), *encoder.encode(None)])))


def read(folder, count=1):
    return read_clip(folder, frames=count, size=None).frames.astype(int)


@pytest.mark.parametrize(
    ("kind", "scale", "suffix"),
    [
        (np.float32, 1, "tif"),
        (np.float32, 255, "tif"),
        (np.float32, 65535, "tif"),
        (np.uint16, 255, "png"),
        (np.uint16, 1023, "png"),
        (np.uint16, 4095, "tif"),
        (np.uint16, 4095, "png"),
        (np.uint16, 16383, "tif"),
        (np.uint16, 65535, "png"),
        (np.int32, 4095, "tif"),
    ],
)
def test_grey_images_are_scaled_by_their_range(tmp_path, caplog, kind, scale, suffix):
    pixels = (LEVELS / 255 * scale).astype(kind)
    Image.fromarray(pixels).save(tmp_path / f"one.{suffix}")
    assert np.abs(read(tmp_path)[0] - LEVELS[..., None]).max() <= 1
    if kind == np.uint16 and scale == 65535:
        assert not caplog.messages
    else:
        assert caplog.messages == [
            f"{tmp_path} has images with levels from {pixels.min():.6g} to {pixels.max():.6g}: "
            f"0 is black, {scale} is white"
        ]


@pytest.mark.parametrize("name", ["one.png", "one.tif"])
@pytest.mark.parametrize("scale", [4095, 65535])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_images_are_scaled_by_their_range(tmp_path, name, scale, channels):
    colours = np.stack((LEVELS, LEVELS[::-1], LEVELS[:, ::-1], np.full(SHAPE, 255)), axis=-1)
    colours[:24, :, 3] = 0
    endian = "be" if name == "one.png" else "le"
    layout = f"{'rgb48' if channels == 3 else 'rgba64'}{endian}"
    encoded(tmp_path / name, layout, (colours / 255 * scale)[..., :channels])
    expected = colours[..., :3] * (colours[..., 3:] > 0 if channels == 4 else 1)
    assert np.abs(read(tmp_path)[0] - expected).max() <= 1


def float_tiff(pixels, endian="<"):
    """A TIFF of floats [height, width, channels], which Pillow cannot write."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{endian}f4").tobytes()
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [32] * channels),
        259: (3, [1]),  # not compressed
        262: (3, [2]),  # RGB
        273: (4, [8]),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(data)]),
        339: (3, [3] * channels),  # floats
    }
    directory, more = b"", b""
    for tag, (kind, values) in entries.items():
        packed = struct.pack(f"{endian}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, more = (
                struct.pack(f"{endian}I", 14 + len(data) + 12 * len(entries) + len(more)),
                more + packed,
            )
        directory += struct.pack(f"{endian}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(f"{endian}I", 8 + len(data))
    return head + data + struct.pack(f"{endian}H", len(entries)) + directory + bytes(4) + more


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("scale", [1, 255, 65535])
def test_colours_in_floats_are_scaled_by_their_range(tmp_path, caplog, endian, channels, scale):
    colours = np.stack((LEVELS, LEVELS[::-1], LEVELS[:, ::-1], np.full(SHAPE, 255)), axis=-1)
    (tmp_path / "one.tif").write_bytes(float_tiff(colours[..., :channels] / 255 * scale, endian))
    assert np.abs(read(tmp_path)[0] - colours[..., :3]).max() <= 1
    assert f"0 is black, {scale} is white" in caplog.text


def test_colours_in_floats_keep_what_is_beyond_white_for_the_range(tmp_path, caplog):
    colours = np.full((*SHAPE, 3), 0.5)
    colours[0, 0], colours[0, 1] = 3, -0.01
    (tmp_path / "one.tif").write_bytes(float_tiff(colours))
    assert read(tmp_path)[0, :2, :2, 0].tolist() == [[255, 0], [128, 128]]
    assert "levels from -0.01 to 3: 0 is black, 1 is white" in caplog.text


@pytest.mark.fault("an image in a layout that nothing here reads")
def test_an_unknown_layout_is_refused(tmp_path):
    whole = float_tiff(np.full((*SHAPE, 3), 0.5))
    compressed = struct.pack("<HHIHH", 259, 3, 1, 1, 0)
    assert whole.count(compressed) == 1
    (tmp_path / "one.tif").write_bytes(whole.replace(compressed, struct.pack("<HHIHH", 259, 3, 1, 9999, 0)))
    with pytest.raises(
        DitflowError, match="one.tif cannot be read as an image of PNG, .*: replace it by a PNG"
    ):
        read(tmp_path)


def test_all_images_of_a_clip_are_scaled_alike(tmp_path):
    for index, brightness in enumerate((0.1, 0.5, 1)):
        Image.fromarray(np.full(SHAPE, brightness * 3000, np.uint16)).save(tmp_path / f"{index}.png")
    assert read(tmp_path, 3)[:, 0, 0, 0].tolist() == [19, 93, 187]  # of 4095


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        ((-1, 0, 1), (0, 128, 255)),  # black at -1
        ((-0.01, 0.5, 1.2), (0, 128, 255)),  # overshoot and a highlight
        ((0, 0.25, 0.5), (0, 64, 128)),
    ],
)
def test_floats_may_be_below_black_and_above_white(tmp_path, levels, shown):
    Image.fromarray(np.array(levels, np.float32).repeat(32).reshape(1, 96)).save(tmp_path / "one.tif")
    assert tuple(read(tmp_path)[0, 0, [0, 40, 90], 0]) == shown


@pytest.mark.fault("images of floats that are not numbers")
@pytest.mark.parametrize("level", [np.nan, np.inf])
def test_levels_that_are_not_numbers_are_refused(tmp_path, level):
    for index in range(2):
        pixels = np.full(SHAPE, 0.5, np.float32)
        pixels[3, 4] = level if index else 0
        Image.fromarray(pixels).save(tmp_path / f"{index}.tif")
    with pytest.raises(DitflowError, match="1.tif cannot be read .* not finite numbers.*: replace it"):
        read(tmp_path, 2)


def test_deep_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter clockwise for display
    Image.fromarray((LEVELS * 257).astype(np.uint16)).save(tmp_path / "one.png", exif=exif)
    assert np.array_equal(read(tmp_path)[0], np.rot90(LEVELS, -1)[..., None].repeat(3, -1))


@pytest.mark.parametrize(("most", "few"), [(3, True), (14, True), (30, False), (255, False)])
def test_a_tiny_range_is_named(most, few):
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[1] = most
    assert Clip(frames, Fraction(8)).few_levels == (
        f"the pictures use only {most} of 255 levels" if few else ""
    )
