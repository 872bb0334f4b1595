"""The report's page, tested without a browser; tests/browser opens it in one."""

import base64
import json
import re
from dataclasses import replace
from fractions import Fraction
from html import unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ditflow import transfer, video
from ditflow.cli.main import main
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.own_flow import read_own_flow
from ditflow.pages.sharing import shared_text, shared_yaml
from ditflow.pictures.charts import loss_chart, phase_table
from ditflow.settings import Settings

PLAYED = ("muted", "loop", "playsinline")


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text())[1])


def videos_of(page, folder):
    """The videos inside a page, as files."""
    for index, found in enumerate(re.findall(r'src="data:video/mp4;base64,(.*?)"', page.read_text())):
        path = folder / f"{index}.mp4"
        path.write_bytes(base64.b64decode(found))
        yield path


def test_a_page_holds_videos_and_flow(settings, tmp_path, capsys, without_decord):
    run = transfer(replace(settings, prompt="<b>bold</b> & more")).folder
    gif = transfer(replace(settings, format="gif", output=str(tmp_path / "gif"), guidance=False)).folder
    page = tmp_path / "page.html"
    assert main(["report", str(run), str(gif), "--output", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in text and "<b>bold" not in text
    assert set(re.findall(r'(?:src|href)="(.{5})', text)) == {"data:"} and "://" not in text

    reference, result, palettes, other = videos_of(page, tmp_path)  # a GIF's reference has other colours
    assert all(video.read_metadata(path) is None for path in (reference, result, palettes, other))
    for shown, name in ((reference, "reference.mp4"), (result, "result.mp4")):
        frames = (video.read_clip(path, frames=10, size=None).frames for path in (shown, run / name))
        assert np.array_equal(*frames) and video.read_metadata(run / name)
    made, shown = (video.read_clip(path, frames=10, size=None).frames for path in (gif / "result.gif", other))
    brightness = np.corrcoef(made.mean(axis=-1).ravel(), shown.mean(axis=-1).ravel())[0, 1]
    assert brightness > 0.8  # noise, compressed again with colours at half the resolution

    assert "<figcaption>target" not in text
    assert all(each is not None for each in data_of(page)["motion"])
    motion = data_of(page)["motion"][0]
    assert (motion["height"], motion["width"]) == (4, 6)
    for name in ("clip", "result", "difference"):
        packed = base64.b64decode(motion["sheets"][name].partition(",")[2])
        assert Image.open(BytesIO(packed)).size == (6 * 6, 4)  # ten frames have six steps of four

    data, (flow,) = data_of(page), read_own_flow(FinishedRun.open(run)).values()
    assert data["clips"] == 2 * [{"frames": 10, "frameRate": 10.0}]
    data["flow"], of_gif = data["flow"]
    assert of_gif["blocks"].keys() == data["flow"]["blocks"].keys()
    for side in ("reference", "result"):
        packed = base64.b64decode(data["flow"]["blocks"]["2"][side]["vectors"])
        vectors = np.frombuffer(packed, "<i2").reshape(flow.result.shape) / data["flow"]["perPatch"]
        assert (vectors == getattr(flow, side)).all()
        assert len(data["flow"]["pictures"][side]) == data["flow"]["frames"] == 4


def test_a_page_without_its_model_and_pages_that_cannot_be_written(settings, tmp_path, capsys):
    run = transfer(settings).folder
    config = (run / "settings.yaml").read_text()
    (run / "settings.yaml").write_text(re.sub("(?m)^model: .*$", "model: /nowhere/model", config))
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    assert data_of(page)["flow"] == [None] and "Not available: model" in page.read_text()
    assert "/nowhere" not in page.read_text()
    assert "no motion flow" in capsys.readouterr().err

    for words, message in (
        (["/nowhere"], "/nowhere is not a finished run"),
        ([str(run), "--output", "/proc/page.html"], "/proc/page.html cannot be written"),
    ):
        assert main(["report", *words]) == 1
        assert message in capsys.readouterr().err


@pytest.fixture
def pages(settings, tmp_path):
    """Makes runs in a folder whose name is not to be shown, and their page; returns the page's sections."""

    def make(*changes, others=()):
        runs = []
        for index, changed in enumerate(changes):
            folder = tmp_path / "secret" / f"run{index}"
            runs.append(str(transfer(replace(settings, output=str(folder), **changed)).folder))
        page = tmp_path / "page.html"
        assert main(["report", *runs, *map(str, others), "--output", str(page)]) == 0
        text = page.read_text()
        assert str(tmp_path) not in text and "secret" not in text
        sections = re.findall(r'<section aria-labelledby="(\w+)-title">(.*?)</section>', text, re.DOTALL)
        return dict(sections)

    return make


def test_runs_are_beside_their_own_clip(settings, pages, tmp_path, without_decord):
    """One reference for each distinct clip, each result captioned with its prompt, and every run's flow."""
    frames = video.read_clip(Path(settings.video), frames=10, size=None).frames
    other = tmp_path / "other.mp4"
    video.write_clip(video.Clip(np.ascontiguousarray(frames[:, ::-1]), Fraction(10)), other)
    sections = pages({"prompt": "one"}, {"video": str(other), "prompt": "two"}, {"prompt": "a third"})
    rows = sections["videos"].split('<div class="videos clip">')[1:]
    shown = [re.findall(r"<figcaption>(.*?)</figcaption>", row) for row in rows]
    name = Path(settings.video).name
    assert [[caption.split(":")[0] for caption in row] for row in shown] == [
        ["reference", '<span class="prompt">one</span> run0', '<span class="prompt">a third</span> run2'],
        ["reference", '<span class="prompt">two</span> run1'],
    ]
    assert [row[0] for row in shown] == [f"reference: {name}", "reference: other.mp4"]
    assert all(tag in video for row in rows for video in re.findall("<video .*?>", row) for tag in PLAYED)
    data = data_of(tmp_path / "page.html")
    assert len(data["clips"]) == 2 and len(data["flow"]) == len(data["motion"]) == 3
    assert None not in data["flow"] + data["motion"]
    last = data["flow"][0]["frames"] - 1
    for index in range(3):  # from the first frame to the last one
        assert f'id="query-{index}" type="range" min="0" max="{last}" value="0"' in sections["flow"]
        assert f'id="key-{index}" type="range" min="0" max="{last}" value="{last}"' in sections["flow"]
    assert "<h3>run1: two</h3>" in sections["flow"] and "<h3>run1: two</h3>" in sections["motion"]


def test_a_run_can_be_repeated_from_the_page(settings, pages, tmp_path):
    """Its settings, saved beside its clip as the page says, are those of the run but for the folders."""
    sections = pages({})
    name = Path(settings.video).name
    assert f"save its settings as <code>run0.yaml</code> beside <code>{name}</code>" in sections["settings"]
    assert "<pre><code>ditflow transfer --config run0.yaml</code></pre>" in sections["settings"]
    shown = unescape(re.search(r"</summary><pre>(.*?)</pre>", sections["settings"], re.DOTALL)[1])
    found = yaml.safe_load(shown)
    made = yaml.safe_load((tmp_path / "secret" / "run0" / "settings.yaml").read_text())
    assert found | {key: made[key] for key in ("video", "output", "model")} == made
    assert (found["video"], found["output"], found["model"]) == (name, "run0", Path(made["model"]).name)


def test_what_is_shared_of_paths(small_folder):
    settings = Settings(
        video="/a/b/clip.mp4",
        model=str(small_folder),
        lora=("/a/x.safetensors:0.5", "owner/name:2", "/a/y.safetensors"),
        output="deep/out",
    )
    shared = yaml.safe_load(shared_yaml(settings))
    assert shared["lora"] == ["x.safetensors:0.5", "owner/name:2", "y.safetensors"]
    assert (shared["video"], shared["output"], shared["model"]) == ("clip.mp4", "out", small_folder.name)
    one_of_two = Settings(model="wan-a14b", lora=("high=/a/x.safetensors:0.5",))
    assert yaml.safe_load(shared_yaml(one_of_two))["lora"] == ["high=x.safetensors:0.5"]
    run = FinishedRun(Path("/a b/run"), settings, {})
    text = "/a b/run: clip /a/b/clip.mp4 and ~/.cache/x/y.bin, https://example.org/a/b, 1/2 or 'deep/out'"
    assert shared_text(text, run) == "run: clip clip.mp4 and y.bin, https://example.org/a/b, 1/2 or 'out'"


def test_folders_that_are_no_transfers_are_skipped(settings, pages, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    sections = pages({}, others=[tmp_path / "empty"])
    assert sections["videos"].count("<video") == 2
    told = capsys.readouterr().err
    assert told.count("skipped") == 1 and f"skipped: {tmp_path / 'empty'} is not a finished run" in told
    absent = ["report", str(tmp_path / "empty"), "/nowhere", "--output", str(tmp_path / "none.html")]
    assert main(absent) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "none of the 2 folders is a finished transfer" in line and not (tmp_path / "none.html").exists()


def test_runs_of_the_same_name_are_told_apart(settings, tmp_path):
    runs = [str(transfer(replace(settings, output=str(tmp_path / part / "run"))).folder) for part in "ab"]
    page = tmp_path / "page.html"
    assert main(["report", *runs, "--output", str(page)]) == 0
    assert page.read_text().count("<polyline") == 2
    assert '<th scope="col">run: s</th>' in page.read_text() and "run-2: s" in page.read_text()


def test_loss_lines():
    chart = loss_chart({"one": [[4.0, 2.0], [1.0]], "none": [], "two": [[float("nan"), 1.0]]})
    lines = re.findall(r'points="(.*?)"', chart)
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    assert [len(line) for line in heights] == [3, 1]
    bottom = 260 - 34
    first, second, third = (bottom - height for height in heights[0])
    assert first == pytest.approx(2 * second, abs=0.2) and second == pytest.approx(2 * third, abs=0.2)
    assert loss_chart({"one": []}) == "<p>Nothing was optimised.</p>"


def test_phases_of_runs_that_differ():
    one = {"text": {"seconds": 1.0, "peak_bytes": 2e9}, "decode": {"seconds": 3.0, "peak_bytes": None}}
    table = phase_table({"one": one, "two": {"text": {"seconds": 4.0, "peak_bytes": 5e9}}})
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")]
    assert cells[2:] == [["1.0", "2.00", "4.0", "5.00"], ["3.0", "-", "-", "-"]]
