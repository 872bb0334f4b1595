"""How well a result moves as it was asked to: hand-made flows, and runs whose motion was chosen."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ditflow import transfer, video
from ditflow.cli.main import main
from ditflow.evaluation.tables import as_table
from ditflow.evaluation.target_match import target_match

RIGHT, LEFT, DOWN, STILL = (2.0, 0.0), (-2.0, 0.0), (0.0, 2.0), (0.0, 0.0)
FREE = (np.nan, np.nan)
PAN = "camera: [{time: 0, pan: [0, 0]}, {time: 1, pan: [-0.375, 0]}]"


def flow(*cells):
    """A flow of two latent frames with these displacements, and free within each frame."""
    found = np.full((2, 2, len(cells), 2), np.nan, np.float32)
    found[0, 1], found[1, 0] = cells, np.negative(cells)
    return found


@pytest.mark.parametrize(
    "target, found, fidelity, reach, compared",
    [
        ([RIGHT, DOWN], [RIGHT, DOWN], 1, 1, 1),
        ([RIGHT, DOWN], [(1.0, 0.0), (0.0, 1.0)], 1, 0.5, 1),
        ([RIGHT, DOWN], [LEFT, (0.0, -2.0)], -1, -1, 1),
        ([RIGHT, RIGHT], [DOWN, DOWN], 0, 0, 1),
        ([RIGHT, RIGHT], [RIGHT, STILL], 0.5, 0.5, 1),
        ([RIGHT, RIGHT], [(2.0, 2.0), (0.01, 0.0)], 0.5**1.5, 0.5025, 1),
        ([(1.0, 0.0), (0.0, 3.0)], [(1.0, 0.0), STILL], 0.5, 0.25, 1),
        ([RIGHT, FREE, STILL], [RIGHT, LEFT, DOWN], 1, 1, 1),
        ([RIGHT, RIGHT, RIGHT, FREE], [RIGHT, FREE, RIGHT, FREE], 1, 1, 2 / 3),
        ([RIGHT, RIGHT], [FREE, FREE], None, None, 0),
        ([FREE, STILL], [RIGHT, RIGHT], None, None, None),
    ],
    ids=[
        *("as asked", "half as far", "backwards", "across", "half stays", "a motion too short to count"),
        *("longer motion weighs more in reach", "free and still cells", "unknown", "nothing known"),
        "nothing asked to move",
    ],
)
def test_hand_made_flows(target, found, fidelity, reach, compared):
    expected = {"fidelity": fidelity, "reach": reach, "compared": compared}
    assert target_match(flow(*target), flow(*found)).as_mapping() == pytest.approx(expected, abs=1e-6)


def test_too_little_in_common_has_no_score():
    target, found = flow(*[RIGHT] * 30), flow(RIGHT, *[FREE] * 29)
    match = target_match(target, found)
    assert (match.fidelity, match.reach) == (None, None) and match.compared == pytest.approx(1 / 30)
    found[:, :, 1] = found[:, :, 0]
    assert target_match(target, found).fidelity == 1


def test_both_ways_between_two_frames_count():
    found = flow(RIGHT)
    found[1, 0] *= -1
    assert target_match(flow(RIGHT), found).fidelity == 0


def pan(height, width):
    """A texture that moves to the right by two pixels in each of ten frames."""
    noise = np.random.default_rng(0).normal(size=(height, width + 18))
    for axis in (0, 1):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    wide = np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    return np.stack([wide[:, 18 - 2 * t : 18 - 2 * t + width] for t in range(10)])


@pytest.fixture
def panned():
    return pan(32, 48)


@pytest.fixture
def evaluate(settings, tmp_path, capsys):
    """Makes a run of a clip that pans, and evaluates it with each of these results."""

    def write(frames, folder):
        clip = video.Clip(np.ascontiguousarray(frames), Fraction(10))
        video.write_clip(clip, folder, replace_frames=True)

    def found(*results, **chosen):
        size = results[0].shape[1:3]
        write(pan(*size), tmp_path / "clip")
        given = {"size": "{1}x{0}".format(*size)}
        given |= {"video": str(tmp_path / "clip"), "format": "frames", "output": str(tmp_path / "run")}
        run = transfer(replace(settings, **given | chosen)).folder
        for frames in results:
            write(frames, run / "result")
            assert main(["evaluate", str(run), "--clip", "none", "--json", "--quiet"]) == 0
            (evaluation,) = json.loads(capsys.readouterr().out)["evaluations"]
            yield evaluation

    return found


def test_an_ordinary_run_has_no_target(evaluate, panned):
    (found,) = evaluate(panned)
    assert found["target"] is None
    assert "target" not in as_table([found])


@pytest.mark.parametrize(
    "chosen, change, reach",
    [
        ({"flip": "horizontal"}, lambda frames: frames[:, :, ::-1], 1),
        ({"reverse_motion": True}, lambda frames: frames[::-1], 1),
        ({"motion_scale": 2.0}, lambda frames: frames, 0.5),
        ({"transfer": "camera"}, lambda frames: frames, 1),
        ({"video": "", "motion": "pan.yaml"}, lambda frames: frames, 1),
    ],
    ids=["mirrored", "reversed", "twice as strong", "camera", "drawn"],
)
def test_the_target_is_what_was_chosen(evaluate, panned, tmp_path, monkeypatch, chosen, change, reach):
    """The opposite motion scores as much below 0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pan.yaml").write_text(PAN)
    as_asked = change(panned)
    toward, away = (found["target"] for found in evaluate(as_asked, as_asked[::-1], **chosen))
    assert toward["fidelity"] > 0.95 and toward["reach"] == pytest.approx(reach, abs=0.08)
    assert away["fidelity"] < -0.95 and away["reach"] == pytest.approx(-reach, abs=0.08)
    assert 0.3 < toward["compared"] <= 1


def test_only_what_the_mask_covers_counts(evaluate, tmp_path):
    """The result moves as the clip in its upper half, and backwards in the lower one."""
    mask = np.zeros((64, 96), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    forward = pan(64, 96)
    result = np.concatenate([forward[:, :32], forward[::-1, 32:]], axis=1)
    chosen = {"mask": str(tmp_path / "mask.png")}
    (upper,), (lower,) = (evaluate(result, mask_invert=invert, **chosen) for invert in (False, True))
    assert upper["target"]["fidelity"] > 0.8 and lower["target"]["fidelity"] < -0.8
    table = as_table([upper])
    assert f"{upper['target']['fidelity']:.3f}" in table and "not with the target" in table


def test_a_run_that_lost_its_target_keeps_its_other_numbers(settings, capsys):
    run = transfer(replace(settings, flip="vertical")).folder
    (run / "motion.safetensors").unlink()
    assert main(["evaluate", str(run), "--clip", "none", "--json", "--quiet"]) == 0
    told = capsys.readouterr()
    (found,) = json.loads(told.out)["evaluations"]
    assert found["target"] is None and found["motion"]["score"] is not None
    assert "no target fidelity" in told.err and "has no motion.safetensors" in told.err
