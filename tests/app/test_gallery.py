"""The runs of a folder: what is listed, shown and served."""

import os
import re
from html import unescape

import pytest

from ditflow.app import gallery
from ditflow.errors import DitflowError


@pytest.fixture
def runs(tmp_path):
    for number, (name, files) in enumerate(
        {
            "older": ("run.json", "result.mp4", "reference.mp4", "embedding.safetensors"),
            "begun & <b>": ("reference.mp4",),
            "damaged": (),
        }.items()
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "settings.yaml").write_text(f"prompt: <i>{number}\nmodel: small")
        for file in files:
            (folder / file).write_text(name)
        os.utime(folder / "settings.yaml", (number, number))
    (tmp_path / "damaged" / "settings.yaml").write_text("[")
    (tmp_path / "uploads").mkdir()
    return tmp_path


def test_runs_are_listed_the_latest_first(runs):
    found = [gallery.read_run(runs / stamp.name) for stamp in gallery.stamps(runs)]
    assert [(run.folder.name, run.state) for run in found] == [
        ("damaged", "unreadable"),
        ("begun & <b>", "unfinished"),
        ("older", "finished"),
    ]
    assert found[2].pictures == ("result.mp4", "reference.mp4") and found[2].has_embedding
    assert not found[1].has_embedding
    assert gallery.stamps(runs / "none") == []


def test_a_card_has_no_text_as_html(runs):
    damaged, begun = (gallery.read_run(runs / name) for name in ("damaged", "begun & <b>"))
    page = gallery.card_html(begun)
    assert "&lt;i&gt;1" in page and "unfinished" in page
    assert 'src="/run/begun%20%26%20%3Cb%3E/reference.mp4"' in page
    assert "<b>[" not in gallery.card_html(damaged)


@pytest.mark.parametrize(
    "name, expected",
    [("older", ["Report", "Replay", "Inject"]), ("begun & <b>", ["Resume"]), ("damaged", [])],
)
def test_what_can_be_done_with_a_run(runs, name, expected):
    page = gallery.card_html(gallery.read_run(runs / name))
    assert re.findall(r"<(?:a|button)[^>]*>(\w+)<", page) == expected
    named = re.findall(r'data-of="([^"]*)"', page)
    assert all(unescape(each) == name for each in named) and len(named) == len(set(expected) - {"Report"})


def test_stamps_change_with_the_runs(runs):
    before = gallery.stamps(runs)
    assert gallery.stamps(runs) == before
    (runs / "begun & <b>" / "run.json").write_text("{}")
    assert gallery.stamps(runs) != before


def test_only_pictures_of_runs_are_served(runs):
    assert gallery.picture(runs, "older", "result.mp4").read_text() == "older"
    (runs / "older" / "result.gif").symlink_to("/etc/hostname")
    for name, file in [
        ("older", "settings.yaml"),
        ("older", "../older/result.mp4"),
        ("older", "reference.gif"),
        ("older", "result.gif"),
        ("..", "result.mp4"),
        ("uploads", "result.mp4"),
    ]:
        with pytest.raises(DitflowError):
            gallery.picture(runs, name, file)
