"""Pairs whose motion is chosen: their files, and what is measured of results that follow it or do not."""

import numpy as np
import pytest

from bench.tunnel import directed
from ditflow.motion.motion_file import read_drawing
from ditflow.settings import read_settings
from ditflow.small import scenes
from ditflow.small.clips import coverage
from ditflow.small.sight import look
from ditflow.small.vocabulary import COLOURS
from ditflow.video import read_clip

DRAWS = (directed.drawn, directed.at_strength, directed.masked, directed.panned)


@pytest.fixture
def common():
    return read_settings(model="small")


def shown(prompt, path, radius=10.0):
    """A result: the prompt's shape and colours on this path [frames, 2]."""
    _, colour, shape, _, _, background, _ = prompt.split()
    radii = np.broadcast_to(radius, len(path))
    covered = np.stack([coverage(shape, *place, 96, 64) for place in zip(path, radii, strict=True)])
    ground, front = (np.array(COLOURS[name], float) for name in (background, colour))
    return np.rint(ground + covered[..., None] * (front - ground)).astype(np.uint8)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_seed_and_an_index_determine_a_pair(draw, common, tmp_path):
    found = []
    for number, (seed, index) in enumerate(((3, 0), (3, 0), (3, 1), (4, 0))):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = draw(seed, index, 24).settings(common, folder)
        files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        found.append((settings.prompt, settings.seed, files))
        assert draw(seed, index, 24).settings(common, folder) == settings, "the files are there already"
    first, again, *others = found
    assert first == again and first[2]
    for other in others:
        assert all(one != another for one, another in zip(first, other, strict=True))


@pytest.mark.parametrize("index", range(4))
def test_drawn_paths(index, common, tmp_path):
    pair = directed.drawn(0, index, 24)
    settings = pair.settings(common, tmp_path)
    assert not settings.has_clip
    (figure,) = read_drawing(tmp_path / "motion.yaml").figures
    path, radii = figure.center * (96, 64) - 0.5, figure.size[:, 0] * 48
    assert (radii[-1] > 1.4 * radii[0]) == (index % 4 == 3), "the fourth one is a zoom"
    followed = pair.outcome(shown(pair.prompt, path, radii))
    assert followed["path_fidelity"] > 0.99 and followed["path_error"] < 0.02
    assert followed["reach"] == pytest.approx(1, abs=0.05)
    assert followed["growth_error"] < 0.05 and followed["prompt_match"] == 1
    still = pair.outcome(shown(pair.prompt, np.repeat(path[:1], 24, axis=0)))
    assert still["path_fidelity"] == pytest.approx(0, abs=0.01) and still["reach"] == 0
    assert still["path_error"] > 0.2
    doublings = np.log2(radii[-4:].mean() / radii[:4].mean())
    assert still["growth_error"] == pytest.approx(doublings, abs=0.03)


def test_motion_at_another_strength(common, tmp_path):
    pair = directed.at_strength(0, 0, 24)
    path = look(read_clip(pair.settings(common, tmp_path).video, frames=24, size=None).frames).centroids
    for strength in (0.5, 1, 2):
        found = pair.outcome(shown(pair.prompt, path[:1] + strength * (path - path[:1]), 6))
        assert found["reach"] == pytest.approx(strength, rel=0.1) and found["path_fidelity"] > 0.98


@pytest.mark.parametrize("index", [0, 1])
def test_one_of_two_objects_is_masked(index, common, tmp_path):
    pair = directed.masked(0, index, 24)
    settings = pair.settings(common, tmp_path)
    clip, mask = (read_clip(path, frames=24, size=None).frames for path in (settings.video, settings.mask))
    assert mask.shape == clip.shape and set(np.unique(mask)) == {0, 255}
    y, x = np.mgrid[:64, :96]
    white = mask[..., 0] > 0
    masked = np.array([[x[frame].mean(), y[frame].mean()] for frame in white])
    moves = np.ptp(masked, axis=0)
    assert (moves[0] > 40 and moves[1] < 1) if index == 0 else (moves[1] > 38 and moves[0] < 1)
    colours = clip[white].astype(int)
    assert np.median(np.abs(colours - np.median(colours, axis=0))) < 5, "the mask is on one object"
    found = pair.outcome(shown(pair.prompt, masked, 8))
    assert found["masked_fidelity"] > 0.98 and abs(found["other_fidelity"]) < 0.1
    assert found["reach"] == pytest.approx(1, abs=0.1)
    turned = (47, 31) + (masked - masked.mean(axis=0))[:, ::-1] / 2  # across instead of down
    found = pair.outcome(shown(pair.prompt, turned, 8))
    assert abs(found["masked_fidelity"]) < 0.1 and abs(found["other_fidelity"]) > 0.98


def test_the_ground_of_a_pan(common, tmp_path):
    pair = directed.panned(0, 0, 24)
    clip = read_clip(pair.settings(common, tmp_path).video, frames=24, size=None).frames
    found = pair.outcome(clip)
    assert found["ground_reach"] == pytest.approx(1, abs=0.1) and found["ground_seen"] > 0.3
    scene = scenes.panned(directed._draw(0, 0)[2])
    carried = pair.outcome(shown(pair.prompt, (47, 31) + scene.ground - scene.ground.mean(axis=0)))
    assert carried["object_fidelity"] > 0.98
    assert carried["ground_reach"] == carried["ground_seen"] == 0  # it is plain
