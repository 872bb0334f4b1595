"""The page of runs whose motion was chosen: drawn, masked or changed."""

import base64
import json
import re
from dataclasses import replace
from html import unescape
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ditflow import transfer
from ditflow.cli.main import main
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.own_flow import read_own_flow
from ditflow.pages.chosen import target_line
from ditflow.pictures.flow_pictures import UNKNOWN
from ditflow.settings import Settings

LINE = """
objects:
  - shape: box
    path:
      - {time: 0, center: [0.25, 0.5], size: [0.34, 0.5]}
      - {time: 1, center: [0.6, 0.45], size: [0.34, 0.5]}
"""


@pytest.fixture
def files(tmp_path):
    """Files that choose a motion, in a folder whose name is not to be shown."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "line.yaml").write_text(LINE)
    mask = np.zeros((32, 48), np.uint8)
    mask[:16] = 255
    Image.fromarray(mask).save(folder / "upper.png")
    return folder


@pytest.fixture
def report(settings, tmp_path):
    """Makes a run with these settings; returns it, the sections of its page, and the page's data."""

    def make(**chosen):
        run = transfer(replace(settings, **chosen)).folder
        page = tmp_path / "page.html"
        assert main(["report", str(run), "--output", str(page)]) == 0
        text = page.read_text()
        sections = re.findall(r'<section aria-labelledby="(\w+)-title">(.*?)</section>', text, re.DOTALL)
        return run, dict(sections), json.loads(re.search(r'id="data">(.*?)</script>', text)[1])

    return make


def vectors(data, side):
    """Displacements in patches, [frames (query), frames (key), height, width, 2]."""
    (flow,) = data["flow"]
    packed = np.frombuffer(base64.b64decode(flow["blocks"]["2"][side]["vectors"]), "<i2")
    found = np.where(packed == flow["free"], np.nan, packed / flow["perPatch"])
    return found.reshape(flow["frames"], flow["frames"], flow["height"], flow["width"], 2)


def sheet(data, side):
    """The colours of the same vectors, [frames (query), frames (key), height, width, 3]."""
    (flow,) = data["flow"]
    packed = base64.b64decode(flow["blocks"]["2"][side]["sheet"].partition(",")[2])
    frames = flow["frames"]
    pixels = np.asarray(Image.open(BytesIO(packed)))
    return pixels.reshape(frames, flow["height"], frames, flow["width"], 3).swapaxes(1, 2)


def check_flow(run, data):
    """The page shows the run's target, free where it is, and the result's flow, which is known everywhere."""
    (flow,) = read_own_flow(FinishedRun.open(run)).values()
    target, free = vectors(data, "reference"), np.isnan(flow.reference)
    assert free.any() and not free.all() and (np.isnan(target) == free).all()
    assert np.abs(target - flow.reference)[~free].max() <= 0.5 / data["flow"][0]["perPatch"]
    assert (vectors(data, "result") == flow.result).all()
    colours, grey = sheet(data, "reference"), free.any(axis=-1)
    assert (colours[grey] == UNKNOWN).all()
    still = ~grey & (flow.reference == 0).all(axis=-1)
    assert (colours[still] == 255).all() and not (colours[~grey] == UNKNOWN).all(axis=-1).any()
    return flow


def test_a_drawn_run_shows_its_target_over_a_preview(report, files):
    run, sections, data = report(video="", motion=str(files / "line.yaml"))
    flow = check_flow(run, data)
    moves = flow.reference[~np.isnan(flow.reference)]
    assert (moves != np.rint(moves)).any(), "there are parts of patches to show"
    assert "<figcaption>preview of what was drawn</figcaption>" in sections["videos"]
    assert "asked for with <code>--motion line.yaml</code>" in sections["flow"]
    assert "<figcaption>target; full colour is" in sections["flow"]
    assert "reference" not in re.sub(r'(id|for)="[\w-]+"', "", sections["flow"])
    assert "beside <code>line.yaml</code>, and run there" in sections["settings"]
    assert "a preview of what was drawn (<code>--motion line.yaml</code>)" in sections["motion"]
    assert "secret" not in (run.parent / "page.html").read_text()


def test_a_masked_run_says_that_its_clip_is_not_what_was_asked(report, files):
    run, sections, data = report(mask=str(files / "upper.png"), rows="all")
    flow = check_flow(run, data)
    first = np.isnan(flow.reference[0])  # the mask follows its content in later frames
    assert first[:, 2:].all() and not first[:, :2].any()
    chosen = "<code>--mask upper.png</code>"
    assert f"asked for with {chosen}" in sections["flow"]
    assert f"the whole clip, which is not what was asked ({chosen})" in sections["motion"]
    assert re.search(r"cosine between displacements is -?[01]\.\d\d and the\s+reach", sections["motion"])
    pictures = data["flow"][0]["pictures"]
    assert pictures["reference"] != pictures["result"]


def test_a_target_at_other_places_is_drawn_over_the_result(report):
    run, sections, data = report(flip="horizontal", reverse_motion=True)
    check_flow(run, data)
    pictures = data["flow"][0]["pictures"]
    assert pictures["reference"] == pictures["result"]
    assert "drawn on the result" in sections["flow"]


@pytest.mark.parametrize("drawn", [False, True], ids=["mirrored", "drawn"])
def test_a_run_that_was_not_guided_has_no_target(report, files, drawn):
    chosen = {"video": "", "motion": str(files / "line.yaml")} if drawn else {"flip": "horizontal"}
    _, sections, data = report(guidance=False, **chosen)
    assert data["flow"] == [None] and data["motion"] != [None]
    assert "Not available: " in sections["flow"] and "has no target to compare with" in sections["flow"]
    assert ("preview" in sections["motion"]) == drawn and "asked" not in sections["motion"]


def test_a_run_that_lost_its_target_keeps_its_other_sections(settings, tmp_path, capsys):
    run = transfer(replace(settings, flip="vertical")).folder
    (run / "motion.safetensors").unlink()
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    text = page.read_text()
    assert "has no motion.safetensors" in text and "which is not what was asked" in text
    assert "no target fidelity" in capsys.readouterr().err


def test_choices_are_shown_as_they_are_given():
    settings = Settings(
        video="/a/clip.mp4",
        model="small",
        mask="/a/my mask.png",
        mask_invert=True,
        camera_from="/a/<b>.mp4",
        motion_scale=2,
        reverse_motion=True,
        motion_shift=(0.25, -0.5),
        motion="/a/line.yaml",
    )
    (shown,) = re.findall("<code>(.*?)</code>", target_line(settings))
    assert unescape(shown) == (
        "--mask 'my mask.png' --mask-invert --camera-from '<b>.mp4' --motion-scale 2 --reverse-motion "
        "--motion-shift 0.25 -0.5 --motion line.yaml"
    )
    assert "<b>" not in shown
