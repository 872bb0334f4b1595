"""Prompt match, CLIP scores and AMF distance, and `ditflow evaluate`."""

import json
import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ditflow import transfer, video
from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.evaluation import tracks
from ditflow.evaluation.clip_scores import ClipModel, prompt_similarity, temporal_consistency
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.made_shapes import is_caption, prompt_match, shape_of
from ditflow.evaluation.motion_match import Matrix
from ditflow.evaluation.own_flow import read_own_flow
from ditflow.evaluation.tables import as_table
from ditflow.small.clips import FRAME_RATE, made_clip
from ditflow.small.sight import look


def fault(what, *values):
    return pytest.param(*values, id=what, marks=pytest.mark.fault(what))


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of two layers with random weights; its tokens are letters."""
    folder = tmp_path_factory.mktemp("clip")
    pieces = ["!", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(pieces), "max_position_embeddings": 20}
    text |= {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
    vision = shape | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def fewer_points(monkeypatch):
    """A smaller grid, to save time."""
    monkeypatch.setattr(tracks, "GRID", 25)


@pytest.mark.parametrize("seed", range(6))
def test_shapes_are_found(seed):
    clip = made_clip(seed, frames=12)
    assert np.abs(look(clip.frames).centroids - clip.centroids).max() < 0.6
    assert prompt_match(clip.frames, clip.caption) == {"colour": True, "shape": True, "background": True}


def test_wrong_shapes_are_seen():
    clip = made_clip(0, frames=9)
    (shape, colour, background) = (clip.scene.shape, clip.scene.colour, clip.scene.background)
    wrong = {"circle": "square", "square": "triangle", "triangle": "circle"}[shape]
    found = prompt_match(clip.frames, f"a {background} {wrong} on a {colour} background")
    assert found == {"colour": False, "shape": False, "background": False}
    assert prompt_match(clip.frames, "a bear in the snow") is None
    assert not is_caption("a pink circle on a blue background")


def test_no_shape_is_found_in_a_plain_picture():
    assert shape_of(look(np.full((9, 32, 48, 3), 200, np.uint8))) is None


def test_clip_scores_are_those_of_transformers(clip_folder):
    """`ClipModel` gives the same as the model's own forward."""
    model = ClipModel.load(str(clip_folder))
    frames = made_clip(0, frames=20).frames  # more than one batch
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(list(frames), return_tensors="pt")
    words = CLIPTokenizer.from_pretrained(clip_folder)("a red circle", return_tensors="pt")
    with torch.no_grad():
        whole = CLIPModel.from_pretrained(clip_folder).eval()(**words, **pixels)
    seen, text = model.frames(frames), model.text("a red circle")
    assert prompt_similarity(seen, text) == pytest.approx(
        float((whole.image_embeds @ whole.text_embeds[0]).mean()), abs=1e-5
    )
    neighbours = (whole.image_embeds[1:] * whole.image_embeds[:-1]).sum(-1).mean()
    assert temporal_consistency(seen) == pytest.approx(float(neighbours), abs=1e-5)
    assert temporal_consistency(seen[:1]) is None


def config_with(folder, part, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part] |= values
    path.write_text(json.dumps(config))


def piped(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        fault(
            f"a CLIP model with a named pipe for {name}",
            lambda folder, name=name: piped(folder, name),
            f"{name} is a named pipe",
        )
        for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.json", "notes.txt")
    ]
    + [
        fault("a CLIP model without a tensor", without_a_tensor, "missing: 1 (text_projection.weight)"),
        fault(
            "a CLIP model of a billion channels",
            lambda folder: config_with(folder, "vision_config", hidden_size=10**9),
            "config.json: vision_config.hidden_size is 1000000000, expected a whole number from 1 to 16384",
        ),
        fault(
            "a CLIP model of a million layers",
            lambda folder: config_with(folder, "text_config", num_hidden_layers=10**6),
            "text_config.num_hidden_layers is 1000000, expected a whole number from 1 to 100",
        ),
        fault(
            "a CLIP model for pictures of a billion pixels",
            lambda folder: (folder / "preprocessor_config.json").write_text(
                json.dumps({"size": {"shortest_edge": 10**9}})
            ),
            "preprocessor_config.json: size.shortest_edge is 1000000000, expected a whole number",
        ),
        fault(
            "a CLIP model that is a pickle",
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin is a pickle",
        ),
    ],
)
def test_damaged_clip_models_are_refused(damage, told, clip_folder, pair, tmp_path, capsys):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    damage(folder)
    words = ["evaluate", "--video", str(pair / "clip.mp4"), "--reference", str(pair / "clip.mp4"), "--quiet"]
    assert main([*words, "--prompt", "a bear", "--clip", str(folder)]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.fault("a CLIP model that is neither a folder nor a hub id")
@pytest.mark.parametrize("name", ["clip.mp4", "/dev/zero", "a/b/c"])
def test_clip_models_that_cannot_be_are_not_asked_for(name, pair, capsys):
    words = ["evaluate", "--video", str(pair / "clip.mp4"), "--reference", str(pair / "clip.mp4"), "--quiet"]
    assert main([*words, "--prompt", "a bear", "--clip", name]) == 1
    told = f"CLIP {name} cannot be loaded (it is neither a folder nor OWNER/NAME on the hub)"
    assert told in capsys.readouterr().err


def test_long_prompts_are_cut_with_a_warning(clip_folder, caplog):
    model = ClipModel.load(str(clip_folder))
    with caplog.at_level(logging.WARNING, "ditflow"):
        model.text("ab " * 9)
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "ditflow"):
        assert model.text("ab " * 30).isfinite().all()
    assert "the prompt has 62 CLIP tokens: cut to the first 20" in caplog.text


@pytest.fixture
def run(settings):
    return transfer(settings).folder


def test_flow_distance_is_the_loss(run):
    """The clip's latents are closer to the clip's flow than the result's are."""
    (flow,) = read_own_flow(FinishedRun.open(run)).values()
    moving = (flow.reference != 0).any(axis=-1)
    assert moving.any() and flow.distance > 0
    assert flow.result.shape == flow.reference.shape == (4, 4, 4, 6, 2)
    assert (flow.result != flow.reference).any()

    class Itself(FinishedRun):
        def latents(self):
            reference, _ = super().latents()
            return reference, reference

    (same,) = read_own_flow(Itself.open(run)).values()
    assert (same.result == same.reference).all() and (same.reference == flow.reference).all()
    assert same.distance < flow.distance


def test_runs_are_evaluated(run, clip_folder, capsys):
    words = ["evaluate", str(run), str(run), "--clip", str(clip_folder), "--quiet", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
    first, second = found["evaluations"]
    assert first == second
    assert -1 <= first["prompt_match"]["clip"] <= 1 and 0 < first["temporal_consistency"] <= 1
    assert set(first["prompt_match"]["made"]) == {"colour", "shape", "background"}
    assert list(first["amf_distance"]) == ["2"]
    assert first["motion"]["score"] <= 1 and 0 < first["motion"]["compared"] <= 1
    assert set(first["motion"]["controls"]) == {"mirrored", "reversed", "shifted"}
    assert first["tracks"] is None and found["matrix"] is None  # of one clip
    assert found["summary"]["amf_distance"]["count"] == 2
    assert found["summary"]["amf_distance"]["half_width"] == 0
    table = as_table(found["evaluations"]).splitlines()
    assert [line.count("|") for line in table] == [table[0].count("|")] * 5
    assert f"{first['amf_distance']['2']:.3f} ± 0.000" in table[-1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    frames = made_clip(0, frames=16).frames
    for name, pictures in {"clip": frames, "back": frames[::-1], "still": frames[:1].repeat(16, 0)}.items():
        video.write_clip(video.Clip(np.ascontiguousarray(pictures), FRAME_RATE), folder / f"{name}.mp4")
    return folder


@pytest.mark.parametrize(
    "name, least, most, tracks",
    [("clip", 0.99, 1, (0.999, 1)), ("back", -0.1, 0.2, (-1, -0.5)), ("still", 0, 0, (0, 0))],
)
def test_any_two_videos(pair, capsys, name, least, most, tracks):
    words = ["evaluate", "--video", str(pair / f"{name}.mp4"), "--reference", str(pair / "clip.mp4")]
    words += ["--prompt", made_clip(0).caption]
    assert main([*words, "--json", "--quiet", "--tracker", "lk"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert least <= found["motion"]["score"] <= most
    assert tracks[0] <= found["tracks"]["bidirectional"]["score"] <= tracks[1]
    assert found["tracks"]["paper"] is None
    assert found["prompt_match"] == {
        "clip": None,
        "made": dict.fromkeys(("colour", "shape", "background"), True),
    }
    if name == "still":
        assert main([*words, "--quiet", "--tracker", "lk"]) == 0
        table = capsys.readouterr().out
        assert "nothing moves in the result" in table and "paper needs --tracker cotracker" in table


def test_controls_show_what_unrelated_motion_scores(pair, capsys):
    """A video played backwards agrees with its clip reversed. (This shape's way is nearly symmetric.)"""
    words = ["evaluate", "--video", str(pair / "back.mp4"), "--reference", str(pair / "clip.mp4"), "--quiet"]
    assert main([*words, "--json", "--clip", "none"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    controls = found["motion"]["controls"]
    assert controls["reversed"] > 0.9 and controls["mirrored"] < 0.8 and controls["shifted"] < 0.4


def test_every_result_against_every_clip(settings, tmp_path, capsys):
    """Results that are clips' own frames: each is first for its own clip. Two runs share a clip."""
    runs = []
    for index, seed in enumerate((3, 5, 5)):
        source = tmp_path / f"clip-{seed}.mp4"
        video.write_clip(video.Clip(made_clip(seed, frames=10).frames, FRAME_RATE), source)
        changed = replace(settings, video=str(source), output=str(tmp_path / f"run-{index}"), guidance=False)
        run = transfer(changed).folder
        (run / "result.mp4").write_bytes((run / "reference.mp4").read_bytes())
        runs.append(str(run))
    words = ["evaluate", *runs, "--clip", "none", "--quiet"]
    assert main([*words, "--json"]) == 0
    matrix = json.loads(capsys.readouterr().out)["matrix"]
    assert (matrix["clips"], matrix["own"], matrix["own_first"]) == (["clip-3", "clip-5"], [0, 1, 1], 3)
    assert [row[own] for row, own in zip(matrix["scores"], matrix["own"], strict=True)] == [1, 1, 1]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "| motion against | clip-3 | clip-5 |" in table and "| **1.000** |" in table
    assert "first for 3 of 3 results" in table


def test_a_tie_is_not_first():
    scores = [[0.5, 0.5], [0.2, None], [None, 0.1], [0.4, 0.3]]
    assert Matrix(["a", "b"], list("wxyz"), scores, [0, 0, 0, 0]).own_first == 2


def test_a_run_whose_model_is_gone_keeps_its_other_numbers(run, capsys):
    settings = run / "settings.yaml"
    lines = [
        "model: /nowhere/model" if line.startswith("model:") else line
        for line in settings.read_text().splitlines()
    ]
    settings.write_text("\n".join(lines) + "\n")
    assert main(["evaluate", str(run), "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    (found,) = json.loads(captured.out)["evaluations"]
    assert found["amf_distance"] is None and found["motion"]["score"] is not None
    assert "no AMF distance (model '/nowhere/model'" in captured.err


def test_damaged_and_other_runs(run, capsys):
    (run / "result.mp4").unlink()
    assert main(["evaluate", str(run)]) == 1
    assert "has no result.mp4: give the folder of a transfer" in capsys.readouterr().err
    (run / "run.json").write_text("{")
    assert main(["evaluate", str(run)]) == 1
    assert "run.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, code, message",
    [
        ([], 2, "give run folders, or --video and --reference"),
        (["--video", "a.mp4"], 2, "give run folders, or --video and --reference"),
        (["x", "--video", "a.mp4", "--reference", "b.mp4"], 2, "give run folders, or --video"),
        (["/nowhere"], 1, "/nowhere is not a finished run"),
        (["--video", "/nowhere", "--reference", "/nowhere", "--clip", "none"], 1, "/nowhere does not exist"),
        (
            ["--video", "{pair}", "--reference", "{pair}", "--clip", "/nowhere"],
            1,
            "give another hub id or a folder",
        ),
        (["--video", "{pair}", "--reference", "{pair}", "--clip", "none", "--tracker", "x"], 2, "one of lk"),
    ],
)
def test_what_cannot_be_evaluated(pair, capsys, words, code, message):
    words = [word.format(pair=pair / "clip.mp4") for word in words]
    assert main(["evaluate", "--quiet", *words]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_clip_that_is_not_there_is_left_out(pair, capsys, monkeypatch):
    monkeypatch.setattr(ClipModel, "load", classmethod(absent))
    words = ["evaluate", "--video", str(pair / "clip.mp4"), "--reference", str(pair / "clip.mp4"), "--quiet"]
    assert main([*words, "--json", "--prompt", "a bear"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["evaluations"][0]["prompt_match"]["clip"] is None
    assert "CLIP is not on this machine: its scores are left out" in captured.err


def absent(cls, name, download=True):
    assert (name, download) == ("openai/clip-vit-base-patch32", False)  # nothing is downloaded unasked
    raise DitflowError("absent")
