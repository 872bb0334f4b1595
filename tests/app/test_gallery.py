"""The runs of a folder: what is listed, shown and served."""

import os

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
    found = gallery.list_runs(runs)
    assert [(run.folder.name, run.state) for run in found] == [
        ("damaged", "unreadable"),
        ("begun & <b>", "unfinished"),
        ("older", "finished"),
    ]
    assert found[2].pictures == ("result.mp4", "reference.mp4") and found[2].has_embedding
    assert not found[1].has_embedding
    assert gallery.list_runs(runs / "none") == []


def test_a_card_has_no_text_as_html(runs):
    damaged, begun, _ = gallery.list_runs(runs)
    page = gallery.card_html(begun)
    assert "&lt;i&gt;1" in page and "unfinished" in page
    assert 'src="/run/begun%20%26%20%3Cb%3E/reference.mp4"' in page
    assert "<b>[" not in gallery.card_html(damaged)


def test_the_stamp_changes_with_the_runs(runs):
    before = gallery.stamp(runs)
    assert gallery.stamp(runs) == before
    (runs / "begun & <b>" / "run.json").write_text("{}")
    assert gallery.stamp(runs) != before


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
