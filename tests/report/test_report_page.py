"""The report's page, tested without a browser; tests/browser opens it in one."""

import base64
import json
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ditflow import transfer, video
from ditflow.cli.main import main
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.own_flow import read_own_flow
from ditflow.pictures.charts import loss_chart, phase_table


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

    reference, result, other = videos_of(page, tmp_path)
    assert reference.read_bytes() == (run / "reference.mp4").read_bytes()
    assert result.read_bytes() == (run / "result.mp4").read_bytes()
    made, shown = (video.read_clip(path, frames=10, size=None).frames for path in (gif / "result.gif", other))
    brightness = np.corrcoef(made.mean(axis=-1).ravel(), shown.mean(axis=-1).ravel())[0, 1]
    assert brightness > 0.8  # noise, compressed again with colours at half the resolution

    assert "<figcaption>reference</figcaption>" in text and ">target<" not in text
    motion = data_of(page)["motion"]
    assert (motion["height"], motion["width"]) == (4, 6)
    for name in ("clip", "result", "difference"):
        packed = base64.b64decode(motion["sheets"][name].partition(",")[2])
        assert Image.open(BytesIO(packed)).size == (6 * 6, 4)  # ten frames have six steps of four

    data, (flow,) = data_of(page), read_own_flow(FinishedRun.open(run)).values()
    assert (data["frames"], data["frameRate"]) == (10, 10.0)
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
    assert data_of(page)["flow"] is None and "Not available: model" in page.read_text()
    assert "no motion flow" in capsys.readouterr().err

    for words, message in (
        (["/nowhere"], "/nowhere is not a finished run"),
        ([str(run), "--output", "/proc/page.html"], "/proc/page.html cannot be written"),
    ):
        assert main(["report", *words]) == 1
        assert message in capsys.readouterr().err


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
