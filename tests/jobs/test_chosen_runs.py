"""Runs whose motion is chosen: drawn, masked, the camera's or changed; through the command line."""

import numpy as np
import pytest
import torch
from PIL import Image
from quick_runs import PROMPT, QUICK, interrupted_in, latents, record, written
from run_processes import contents
from safetensors.torch import load_file, save_file

from ditflow.cli.main import main
from ditflow.models.cogvideox.schedule import CogVideoXSchedule

DRAWN = """
objects:
  - shape: box
    path:
      - {time: 0, center: [0.2, 0.5], size: [0.34, 0.5]}
      - {time: 1, center: [0.8, 0.5], size: [0.34, 0.5]}
"""


@pytest.fixture
def drawing(tmp_path):
    path = tmp_path / "line.yaml"
    path.write_text(DRAWN)
    return path


@pytest.fixture
def mask(tmp_path):
    """A folder with the moving square of the clip in white."""
    folder = tmp_path / "mask"
    folder.mkdir()
    for index in range(14):
        picture = np.zeros((32, 48), np.uint8)
        picture[4 + index : 14 + index, 2 * index : 2 * index + 12] = 255
        Image.fromarray(picture).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def plain(clip, small_folder, tmp_path_factory):
    """The latents of a run that follows all of the clip's motion."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    words = ("--model", small_folder, "--video", clip, "--no-injection", *QUICK, "--output", folder)
    assert main(["transfer", *map(str, words)]) == 0
    return latents(folder)


def test_a_drawn_motion_needs_no_clip(transfer, drawing):
    run = transfer("--motion", drawing)
    assert written(run)["motion"] == str(drawing) and not written(run)["injection"]
    assert all(losses[1] < losses[0] for losses in record(run)["losses"])
    assert {phase for phase in record(run)["phases"]} == {"text", "denoise", "decode"}
    assert load_file(run / "latents.safetensors").keys() == {"latents"}
    assert load_file(run / "motion.safetensors").keys() == {"drawn"}
    assert {"reference.mp4", "comparison.mp4", "result.mp4"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize(
    "words",
    [
        ("--mask", "mask"),
        ("--mask", "mask", "--mask-invert"),
        ("--mask", "auto"),
        ("--transfer", "camera"),
        ("--transfer", "object"),
        ("--motion-scale", 0.5),
        ("--flip", "horizontal"),
        ("--reverse-motion",),
        ("--motion-shift", 0.2, -0.25),
        ("--motion", "line.yaml"),
        ("--mask", "mask", "--camera-from", "clip"),
        ("--mask", "mask", "--reference-noise", "step"),
    ],
    ids=lambda words: "-".join(str(word).strip("-") for word in words),
)
def test_each_choice_changes_the_result_and_repeats(
    ditflow, transfer, plain, drawing, mask, clip, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    given = [clip if word == "clip" else word for word in words]
    run = transfer("--video", clip, "--no-injection", *given)
    assert (latents(run) - plain).norm() > 1e-3 * plain.norm()
    assert all(losses[1] < losses[0] for losses in record(run)["losses"])
    again = ditflow("transfer", "--config", run / "settings.yaml", "--quiet").strip()
    assert torch.equal(latents(tmp_path / again), latents(run))


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("kind", ["drawn", "masked"])
def test_resume_after_an_interruption(
    ditflow, transfer, drawing, mask, clip, tmp_path, monkeypatch, kind, at
):
    """In a guided step and in a later one; the files that chose the motion are gone by then."""
    words = (
        ("--motion", drawing) if kind == "drawn" else ("--video", clip, "--mask", mask, "--flip", "vertical")
    )
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    transfer(*words, "--output", "run")
    monkeypatch.chdir(tmp_path)
    interrupted = interrupted_in(at, CogVideoXSchedule, monkeypatch)
    with interrupted, pytest.raises(AssertionError, match="continues from there"):
        transfer(*words, "--output", "run")
    drawing.unlink()
    for path in mask.iterdir():
        path.unlink()
    ditflow("resume", "run", "--quiet")
    assert record(tmp_path / "run")["resumed"]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole" / "run")


def test_resume_refuses_another_motion(ditflow, transfer, drawing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interrupted = interrupted_in(0, CogVideoXSchedule, monkeypatch)
    with interrupted, pytest.raises(AssertionError, match="continues from there"):
        transfer("--motion", drawing, "--output", "run")
    path = tmp_path / "run" / "motion.safetensors"
    saved = load_file(path)
    save_file({"drawn": saved["drawn"] * 2}, path)
    code, error = ditflow("resume", "run", fails=True)
    assert code == 1 and "was made for another chosen motion" in error
    save_file({"drawn": saved["drawn"][1:]}, path)
    code, error = ditflow("resume", "run", fails=True)
    assert code == 1 and "motion.safetensors is damaged" in error
    save_file({}, path)
    code, error = ditflow("resume", "run", fails=True)
    assert code == 1 and "`drawn` is not there as the run's settings say" in error
    path.unlink()
    code, error = ditflow("resume", "run", fails=True)
    assert code == 1 and "has no motion.safetensors" in error


def test_inject_uses_the_embedding_alone(ditflow, transfer, drawing, tmp_path):
    origin = transfer("--motion", drawing, "--optimise", "embedding", "--keep-precision")
    drawing.unlink()  # it is no longer needed, except for the preview
    drawing.write_text(DRAWN)
    run = tmp_path / ditflow("inject", "--from", origin, "--prompt", PROMPT, "--quiet").strip()
    assert torch.equal(latents(run), latents(origin))


@pytest.mark.parametrize("words", [("--motion", "line.yaml"), ("--video", "clip", "--mask", "mask")])
def test_flow_shows_what_is_asked(ditflow, small_folder, drawing, mask, clip, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    given = [clip if word == "clip" else word for word in words]
    size = ("--frames", 10, "--size", "48x32", "--device", "cpu", "--guidance-blocks", 2)
    run = tmp_path / ditflow("flow", "--model", small_folder, *size, *given, "--quiet").strip()
    (target,) = load_file(run / "flow.safetensors").values()
    assert target.isnan().any() and not target.isnan().all()
    name = "drawn" if "--motion" in words else "block_2"
    expected = {f"arrows_{name}.mp4", f"flow_{name}.png", "reference.mp4", "settings.yaml"}
    assert expected <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize(
    "words, message",
    [
        (("--loss", "moft"), "mask: it sets where each patch goes, and loss moft compares features"),
        (("--x0-after", 0.5), "loss x0 (--x0-after) compares"),
        (
            ("--video", "", "--motion", "line.yaml"),
            "mask: it needs a clip",
        ),
        (("--mask", "", "--mask-invert"), "mask_invert: there is no mask; give --mask FILE or --mask auto"),
        (("--mask", "", "--camera-from", "clip"), "camera_from: there is no mask"),
        (("--motion-scale", -1), "motion_scale: '-1' given, at least 0 accepted"),
        (("--motion-shift", 2, 0), "motion_shift"),
        (("--transfer", "background"), "accepted: all, object, camera"),
        (("--flip", "diagonal"), "accepted: none, horizontal, vertical"),
        (("--mask", "none.mp4"), "none.mp4"),
        (("--motion", "none.yaml"), "none.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(transfer, drawing, mask, clip, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    code, error = transfer("--video", clip, "--mask", mask, *words, fails=True)
    assert code in (1, 2) and message in error and error.count("\n") <= 1
    assert set(tmp_path.iterdir()) == before, "a refused run leaves no folder"


def test_blocks_are_compared_on_the_whole_motion(ditflow, small_folder, clip):
    words = ("flow", "--model", small_folder, "--video", clip, "--blocks", "all", "--flip", "vertical")
    code, error = ditflow(*words, fails=True)
    assert code == 2 and "flip: blocks are compared on the whole motion of the clip" in error


def test_what_changes_nothing_is_said(transfer, clip, caplog):
    transfer("--video", clip, "--no-guidance", "--flip", "vertical")
    assert "flip: nothing is optimised, so it changes nothing" in caplog.text
