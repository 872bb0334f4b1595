"""Videos and image folders: the command line reads them or refuses them in one line."""

import numpy as np
import pytest
import sources
from command_line import assert_begins, assert_refused, begun, case, transfer_words
from sources import content, cut, folder, frames_of, gif, of_kind, png

from ditflow.jobs import transfer as jobs
from ditflow.video import folders, reading

KINDS = "give mp4, mov, mkv, webm, avi, gif or a folder of images"
UNREADABLE = ("cannot be read as a video", KINDS)
NO_FRAME = ("none of its frames can be read", "it is damaged, or has more than 67108864 pixels; give another")
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.mp4\n#EXT-X-ENDLIST\n"
LIST = b"ffconcat version 1.0\nfile b.mp4\n"


@pytest.fixture(autouse=True)
def beginning_alone(monkeypatch, tmp_path):
    """Only begins the transfer, in an empty folder beside the sources."""
    monkeypatch.setattr(jobs, "transfer", begun)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize(
    ("name", "make", "parts"),
    [
        case("a video cut short after a few frames", "a.mp4", sources.few_frames, ["a run needs at least 9"]),
        case("a video cut short before its index", "a.mp4", cut(0.6, of_kind()), UNREADABLE),
        case("an empty file", "a.mp4", content(b""), ["a.mp4 is empty: give a"]),
        case("text under a video's name", "a.mp4", content(b"hello\n"), UNREADABLE),
        case("a picture under a video's name", "a.mp4", sources.picture, UNREADABLE),
        case("a file with audio only", "a.mp4", sources.sound, ["no video stream, only audio: give a video"]),
        case("a video of one frame", "a.mkv", frames_of(1), ["only 1 frames", "give a longer video"]),
        case("a video one frame too short", "a.mkv", frames_of(8), ["only 8 frames", "give a longer video"]),
        case("a video whose frames are noise", "a.mp4", sources.garbled, NO_FRAME),
        case("a video that claims 30000x30000", "a.mkv", sources.huge_in_matroska, NO_FRAME),
        case("a GIF of 65535x65535 in a few bytes", "a.gif", gif(65535), NO_FRAME),
        case("a GIF of 16000x16000 in a few bytes", "a.gif", gif(16000), NO_FRAME),
        case("a video that claims ten million frames", "a.mp4", sources.ten_million_frames, NO_FRAME),
        case("a playlist under a video's name", "a.mp4", content(PLAYLIST), UNREADABLE),
        case("a list of files under a video's name", "a.mp4", content(LIST), UNREADABLE),
        case(
            "a pipe instead of a video",
            "a.mp4",
            sources.pipe,
            ["a.mp4 is a named pipe: give a regular file"],
        ),
        case("a pipe as an image", "a", folder(sources.pipe_inside), ["frame03.png is a named pipe: give a"]),
        case(
            "the kernel's log as an image",
            "a",
            folder(sources.link_to("/proc/kmsg")),
            ["frame03.png is empty: give a"],
        ),
        case(
            "a device as an image",
            "a",
            folder(sources.link_to("/dev/zero")),
            ["frame03.png is a device: give"],
        ),
        case(
            "a picture that claims 10000x10000",
            "a",
            folder(png(10_000)),
            ["is 10000x10000, more than", "scale it down"],
        ),
        case(
            "a picture that claims 30000x30000", "a", folder(png(30_000)), ["900000000 pixels", "replace it"]
        ),
        case(
            "PostScript as PNG",
            "a",
            folder(sources.postscript),
            ["03.png cannot be read as an image", "replace it"],
        ),
        case(
            "half a picture",
            "a",
            folder(sources.half),
            ["frame03.png cannot be read as an image", "replace it"],
        ),
    ],
)
def test_refused(name, make, parts, small_folder, tmp_path, capfd):
    make(tmp_path / name)
    assert_refused(capfd, transfer_words(small_folder, tmp_path / name), 1, name, *parts)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        case("the kernel's log as a video", "/proc/kmsg", "/proc/kmsg is empty: give a regular file"),
        case("a device as a video", "/dev/zero", "/dev/zero is a device: give a regular file"),
    ],
)
def test_endless_sources_are_not_opened(source, reason, small_folder, capfd):
    assert_refused(capfd, transfer_words(small_folder, source), 1, reason)


@pytest.mark.parametrize(
    ("name", "make", "warning"),
    [
        case("a variable frame rate", "a.mp4", sources.uneven, "a.mp4 has a variable frame rate"),
        case("a video that claims two billion times", "a.mp4", sources.two_billion_times, ""),
        case("a video with a rotation flag", "a.mp4", sources.turned, ""),
        case("a video of odd width and height", "a.mkv", of_kind("ffv1", "yuv444p", 63, 47), ""),
        case("a video twenty times as wide as high", "a.mkv", of_kind("ffv1", "yuv444p", 320, 16), ""),
        case("a 10-bit video", "a.mp4", of_kind("libx264", "yuv420p10le"), ""),
        case("a video with transparency", "a.mov", of_kind("qtrle", "argb"), ""),
        case("an MP4 under an AVI's name", "a.avi", sources.mp4_renamed, ""),
        case("a name in capitals with emoji and spaces", "🐻 Bär.MP4", sources.mp4_renamed, ""),
        case(
            "a container that claims 30000x30000",  # FFmpeg takes the pixels' shape from that
            "a.mp4",
            sources.huge_in_mp4,
            "a.mp4 is read as players show it: scaled from 64x48 to 85x48",
        ),
        case("images of floats from 0 to 1", "a", folder(sources.floats), "0 is black, 1 is white"),
        case("images of several sizes", "a", folder(sources.second_size), ""),
        case(
            "a gap in the image numbers",
            "a",
            folder(sources.gap),
            "frame03.png is followed by frame05.png",
        ),
    ],
)
def test_read(name, make, warning, small_folder, tmp_path, capfd):
    make(tmp_path / name)
    clip = assert_begins(capfd, [*transfer_words(small_folder, tmp_path / name), "--fit", "pad"], warning)
    assert len({frame.tobytes() for frame in clip.frames}) > 1 and np.ptp(clip.frames[0]) > 50


@pytest.mark.fault("a stride that is too wide for the video")
def test_advice_is_accepted(small_folder, tmp_path, capfd):
    words = transfer_words(small_folder, sources.front(tmp_path / "a.mp4"))
    assert_refused(capfd, [*words, "--stride", "20"], 1, "only 40 frames", "need 161: use --stride 4\n")
    assert_begins(capfd, [*words, "--stride", "4"])


@pytest.mark.fault("images of hardly any contrast")
def test_few_levels_are_named(small_folder, tmp_path, capfd):
    folder(sources.dim)(tmp_path / "a")
    named = "the pictures use only 11 of 255 levels, so its motion is hardly seen"
    assert_begins(capfd, transfer_words(small_folder, tmp_path / "a"), named)


@pytest.mark.fault("more frames, pixels or images than the limits")
def test_limits(small_folder, tmp_path, capfd, monkeypatch):
    words = transfer_words(small_folder, sources.front(tmp_path / "a.mp4"))
    far = ["reach frame 400016, but only the first 200000 frames", "cut the source"]
    assert_refused(capfd, [*words, "--start", "200000", "--stride", "25002"], 2, *far)
    monkeypatch.setattr(reading, "CLIP_BYTES", 9 * 48 * 32 * 3 - 1)
    assert_refused(capfd, words, 1, "9 frames of 48x32 take more than", "fewer frames or a smaller size")
    folder()(tmp_path / "images")
    monkeypatch.setattr(folders, "SOURCE_FRAMES", 11)
    more = "images has more than 11 images: give a folder with fewer"
    assert_refused(capfd, transfer_words(small_folder, tmp_path / "images"), 1, more)
