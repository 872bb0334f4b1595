"""`ditflow flow` on the toy, through the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ditflow.memory.streamed import Streamed
from ditflow.planning import plan
from ditflow.video import read_clip

DEPTH, FRAMES, LATENT_FRAMES = 5, 9, 3


def test_flow_shows_the_frames_of_the_toys_latent_frames(ditflow, clip, toy_folder, tmp_path):
    words = ("--video", clip, "--model", toy_folder, "--guidance-blocks", 1, 3, "--device", "cpu", "--format")
    run = tmp_path / ditflow("flow", *words, "frames", "--quiet").strip()
    flow = load_file(run / "flow.safetensors")
    assert flow.keys() == {"block_1", "block_3"}
    for pairs in flow.values():
        assert pairs.shape == (LATENT_FRAMES, LATENT_FRAMES, 8 * 6, 2)
        assert pairs.any()
    assert not torch.equal(*flow.values())
    # arrows lie over frames 0, 3 and 7 of the clip, enlarged eight times
    shown = [np.asarray(Image.open(path)) for path in sorted((run / "arrows_block_1").glob("*.png"))]
    frames = read_clip(clip, frames=FRAMES, size=None).frames
    for picture, index in zip(shown, (0, 3, 7), strict=True):
        same = [(picture[::8, ::8] == frame).all(-1).mean() for frame in frames]
        assert int(np.argmax(same)) == index and max(same) > 0.5


@pytest.mark.parametrize("name", ["4gb", "12gb", "16gb", "24gb"])  # one of each kind of runner
def test_blocks_are_compared_in_every_runner(ditflow, clip, toy_folder, tmp_path, name, monkeypatch):
    """With weights streamed, at the toy's own noise levels, from 0 to 1000."""
    walked, walk = [], Streamed.walk

    def watched(self, order):
        walked.append(list(order))
        return walk(self, walked[-1])

    given = ("--video", clip, "--model", toy_folder, "--device", "cpu")
    words = (*given, "--blocks", "all", "--timestep", 0, 1000)
    expected = tmp_path / ditflow("flow", *words, "--quiet").strip()
    monkeypatch.setattr(Streamed, "walk", watched)
    monkeypatch.setattr(plan, "_resident_blocks", lambda *_: 1)
    told = ditflow("flow", *words, "--memory", name).splitlines()
    assert walked.count(list(range(DEPTH))) == 2  # one forward a noise level
    run = tmp_path / told[-1]
    found = json.loads((run / "blocks.json").read_text())
    assert found == json.loads((expected / "blocks.json").read_text())
    (reference,) = found["references"].values()  # nobody knows this clip's true motion
    assert list(reference["blocks"]) == [str(block) for block in range(DEPTH)] and reference["moving"] > 0.1
    levels = [entry["levels"] for entry in reference["blocks"].values()]
    assert [each["timestep"] for each in levels[0]] == [0, 1000]
    assert all(clean["agreement"] != noisy["agreement"] for clean, noisy in levels)
    assert told[-2].startswith("guide ")


@pytest.mark.parametrize(
    "words, says",
    [
        ("--blocks 5", "blocks: block 5 given, this model has blocks 0 to 4, or all"),
        (
            "--blocks all --timestep 1001",
            "timestep: 1001 given, this schedule has timesteps 0 (the clean clip) to 1000",
        ),
    ],
)
def test_blocks_that_the_toy_has_not_are_refused(ditflow, clip, toy_folder, tmp_path, words, says):
    given = ("--video", clip, "--model", toy_folder, "--output", "run", "--device", "cpu")
    code, error = ditflow("flow", *given, *words.split(), fails=True)
    assert code == 2 and error == f"ditflow: {says}\n" and not (tmp_path / "run").exists()
