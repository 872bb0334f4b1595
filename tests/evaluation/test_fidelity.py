"""Motion fidelity of constructed tracks, the trackers, and confidence intervals."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ditflow.errors import DitflowError, SettingsError
from ditflow.evaluation.fidelity import bidirectional_fidelity, paper_fidelity
from ditflow.evaluation.intervals import interval
from ditflow.evaluation.tracks import GRID, Tracks, track
from ditflow.small.clips import made_clip


def wander(tracks=60, frames=12, seed=0):
    """Independent random tracks."""
    steps = np.random.default_rng(seed).normal(size=(tracks, frames, 2))
    return Tracks(3 * steps.cumsum(axis=1), np.ones(tracks, bool), diagonal=100.0)


def straight(x, y, tracks=5, frames=9):
    return Tracks(
        np.tile(np.arange(float(frames))[:, None] * (x, y), (tracks, 1, 1)), np.ones(tracks, bool), 100.0
    )


def released_formula(reference, result):
    """The definition, one pair of tracks at a time."""

    def likeness(first, second):
        first, second = np.diff(first, axis=0), np.diff(second, axis=0)
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return ((first * second).sum(axis=1) / norms).mean()

    best = [
        max(likeness(ours, theirs) - (i == j) for j, theirs in enumerate(reference.places))
        for i, ours in enumerate(result.places)
    ]
    return np.mean(best)


def test_paper_is_the_released_formula():
    reference, result = wander(seed=1), wander(seed=2)
    found = paper_fidelity(reference, result)
    assert found.score == pytest.approx(released_formula(reference, result), rel=1e-12)
    assert found.dropped == {"reference": 0, "result": 0}


def test_identical_videos_of_independent_tracks():
    """The released formula excludes each track's match with itself; the bidirectional score does not."""
    tracks = wander(200, 24)
    assert 0.3 < paper_fidelity(tracks, tracks).score < 0.6
    assert bidirectional_fidelity(tracks, tracks).score == pytest.approx(1)


def test_a_track_that_pauses_is_dropped_from_paper_alone():
    reference, result = wander(seed=1), wander(seed=2)
    result.places[7, 5] = result.places[7, 4]
    rest = np.arange(60) != 7
    found = paper_fidelity(reference, result)
    assert found.dropped == {"reference": 0, "result": 1}
    shorter = paper_fidelity(reference, Tracks(result.places, rest, 100.0))
    assert found.score == shorter.score and np.isfinite(found.score)
    assert bidirectional_fidelity(result, result).score == pytest.approx(1)


@pytest.mark.parametrize(
    "result, score",
    [((2, 0), 1), ((5, 0), 1), ((-2, 0), -1), ((0, 2), 0), ((1, 1), np.sqrt(0.5))],
    ids=["same", "faster", "opposite", "across", "half way"],
)
def test_direction_counts_and_speed_does_not(result, score):
    assert bidirectional_fidelity(straight(2, 0), straight(*result)).score == pytest.approx(score, abs=1e-9)


def test_both_ways_count():
    """A result with one of two motions matches fully in one direction, and half in the other."""
    places = np.concatenate([straight(2, 0).places, straight(-2, 0).places])
    both = Tracks(places, np.ones(10, bool), 100.0)
    assert bidirectional_fidelity(both, straight(2, 0)).score == pytest.approx((1 + 0) / 2)
    assert bidirectional_fidelity(straight(2, 0), both).score == pytest.approx((1 + 0) / 2)


def test_still_background_takes_no_part():
    opposite = np.concatenate([straight(-2, 0).places, straight(0, 0, tracks=50).places])
    same = np.concatenate([straight(2, 0).places, straight(0, 0, tracks=50).places])
    tracks = [Tracks(places, np.ones(55, bool), 100.0) for places in (same, opposite)]
    found = bidirectional_fidelity(*tracks)
    assert found.score == pytest.approx(-1)
    assert (found.moving, found.found) == ({"reference": 5, "result": 5}, {"reference": 55, "result": 55})


def test_a_pause_matches_only_a_pause():
    stops, goes = straight(2, 0), straight(2, 0)
    stops.places[:, 5:] = stops.places[:, 4:5]  # half of the time
    assert bidirectional_fidelity(stops, stops).score == pytest.approx(1)
    assert bidirectional_fidelity(goes, stops).score == pytest.approx(0.5)


def test_still_and_lost_videos():
    still, lost = straight(0, 0), Tracks(straight(1, 0).places, np.zeros(5, bool), 100.0)
    for reference, result, score, names in [
        (straight(1, 0), still, 0, ["result"]),
        (still, straight(1, 0), 0, ["reference"]),
        (still, still, 1, ["reference", "result"]),
        (straight(1, 0), lost, None, []),
    ]:
        found = bidirectional_fidelity(reference, result)
        assert (found.score, found.still) == (score, names)
    assert paper_fidelity(still, still).score is None


def test_videos_of_different_length():
    reference, result = wander(frames=12), wander(frames=12)
    shorter = Tracks(result.places[:, :8], result.found, 100.0)
    assert bidirectional_fidelity(reference, shorter).score == pytest.approx(1)


def test_lucas_kanade_follows_the_shape():
    clip = made_clip(0)
    tracks = track(clip.frames)
    radius = clip.scene.radii[0] / 2
    inside = np.hypot(*(tracks.places[:, 0] - clip.centroids[0]).T) < radius
    followed = tracks.places[inside & tracks.found]
    assert len(followed) > 10
    off = followed - followed[:, :1] - (clip.centroids - clip.centroids[0])
    assert np.abs(off).max() < 1.0


@pytest.fixture(scope="module")
def moving():
    """A clip whose shape crosses the picture."""
    return made_clip(0, frames=16).frames


def test_real_clips(moving):
    tracks, backwards = track(moving), track(moving[::-1].copy())
    assert bidirectional_fidelity(tracks, tracks).score == pytest.approx(1)
    assert bidirectional_fidelity(tracks, backwards).score < -0.5
    still = track(np.repeat(moving[:1], 16, axis=0))
    found = bidirectional_fidelity(tracks, still)
    assert (found.score, found.still) == (0, ["result"])


def test_unknown_trackers(moving, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="'kanade': give none or one of lk, cotracker"):
        track(moving, "kanade")
    with pytest.raises(SettingsError, match="for the tracker cotracker, not lk"):
        track(moving, "lk", tmp_path / "weights.pth")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DitflowError, match=r"pip install .ditflow\[eval\]"):
        track(moving)


class FakePredictor(torch.nn.Module):
    """A tracker that says everything moves one pixel to the right per frame."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)

    def forward(self, video, grid_size):
        assert video.shape[1:3] == (16, 3) and video.dtype == torch.float32
        steps = torch.arange(16.0)[:, None, None] * torch.tensor([1.0, 0.0])
        return steps.expand(16, grid_size**2, 2)[None], None


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake hub with a predictor and a weights file; gives the requests and the predictor."""
    asked, predictor = [], FakePredictor()

    def load(repository, entry, pretrained, **_):
        assert not pretrained  # pretrained=True would unpickle weights, which can run code
        asked.append((repository, entry))
        return predictor

    def fetch(url, map_location, weights_only):
        return torch.load(tmp_path / Path(url).name, map_location, weights_only=weights_only)

    monkeypatch.setattr(torch.hub, "load", load)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    return asked, predictor


def weights_of(value):
    return {"weight": torch.full((1, 1), value), "bias": torch.zeros(1)}


def test_cotracker_from_the_hub_or_a_file(hub, moving, tmp_path):
    asked, predictor = hub
    torch.save(weights_of(3.0), tmp_path / "scaled_offline.pth")
    assert bidirectional_fidelity(track(moving, "cotracker"), straight(1, 0, frames=16)).score == 1
    assert predictor.model.weight.item() == 3.0
    torch.save(weights_of(5.0), tmp_path / "own.pth")
    tracks = track(moving, "cotracker", tmp_path / "own.pth")
    assert tracks.places.shape == (GRID**2, 16, 2)
    assert predictor.model.weight.item() == 5.0
    (repository, entry), again = asked
    assert re.fullmatch("facebookresearch/co-tracker:[0-9a-f]{40}", repository)  # a revision, not a branch
    assert entry == "cotracker3_offline" and again == (repository, entry)
    with pytest.raises(DitflowError, match="CoTracker3 cannot be loaded .*--tracker lk"):
        track(moving, "cotracker", tmp_path / "absent.pth")


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["scaled_offline.pth", "own.pth"])
def test_cotracker_weights_are_tensors_and_nothing_else(hub, moving, tmp_path, name):
    torch.save(weights_of(1.0) | {"bias": Hostile(tmp_path / "made")}, tmp_path / name)
    with pytest.raises(DitflowError, match="CoTracker3 cannot be loaded"):
        track(moving, "cotracker", None if name == "scaled_offline.pth" else tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_intervals():
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5 and found.half_width == pytest.approx(2.0540, abs=1e-3)  # t(3) = 3.182
    assert interval([]) is None and interval([7]).half_width is None
    wide = interval([0.0, 1.0] * 61)  # t(121) = 1.980
    assert wide.half_width == pytest.approx(1.980 * np.sqrt(0.25 / 121), rel=1e-3)
