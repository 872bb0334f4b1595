"""Made scenes: the pixels agree with the masks, the centroids, the ground's motion and the seed."""

import numpy as np
import pytest
from made_videos import measured_centroids

from ditflow.motion.drawing import Drawing
from ditflow.motion.motion_file import read_drawing
from ditflow.small.scenes import DRAWN_PATHS, FAR, drawn_figure, motion_text, panned, short_line, two_objects

SEEDS = range(12)
MAKERS = pytest.mark.parametrize("make", [two_objects, short_line, panned])


@MAKERS
@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_where_the_objects_are(make, seed):
    scene = make(seed)
    assert scene.frames.shape == (24, 64, 96, 3) and scene.frames.dtype == np.uint8
    assert not scene.masks.sum(axis=0).max() > 1, "one object hides another"
    for mask, centroids in zip(scene.masks, scene.centroids, strict=True):
        assert np.abs(measured_centroids(mask.astype(float)) - centroids).max() < 0.6  # whole pixels
        colours = scene.frames[mask]
        inside = np.median(colours, axis=0)
        assert (np.abs(colours - inside).max(axis=1) < 3).mean() > 0.8, "more than one colour"
        outside = scene.frames[~scene.masks.any(axis=0)]
        assert (np.linalg.norm(outside - inside, axis=1) < 20).mean() < 0.01, "the ground has it too"


@MAKERS
def test_a_seed_determines_the_scene(make):
    assert np.array_equal(make(3).frames, make(3).frames)
    assert not np.array_equal(make(3).frames, make(4).frames)


def test_two_objects_go_across_and_down():
    headings = set()
    for seed in SEEDS:
        across, down = (path[-1] - path[0] for path in two_objects(seed).centroids)
        assert across[1] == 0 and abs(across[0]) > 40
        assert down[0] == 0 and abs(down[1]) > 38
        headings |= {(across[0] > 0, down[1] > 0)}
    assert len(headings) == 4, "every direction occurs"


def test_a_short_line_can_be_doubled():
    for seed in SEEDS:
        scene = short_line(seed)
        (path,) = scene.centroids
        assert np.linalg.norm(path[-1] - path[0]) > 17
        for start in (path[0], path[-1]):
            doubled = start + 2 * (path - start)
            assert (doubled > -0.5).all() and (doubled < (95.5, 63.5)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ground_moves_as_it_says(seed):
    """The first frame, moved by whole pixels, is a later frame."""
    scene = panned(seed)
    frame = np.argmin(np.abs(scene.ground[8:] - scene.ground[8:].round()).max(axis=1)) + 8
    x, y = scene.ground[frame].round().astype(int)
    missed = np.abs(scene.ground[frame] - (x, y)).max()
    shown = np.roll(scene.frames[0].astype(int), (y, x), axis=(0, 1))
    rows, columns = (slice(max(0, shift), size + min(0, shift)) for shift, size in ((y, 64), (x, 96)))
    ground = ~(np.roll(scene.masks[0, 0], (y, x), axis=(0, 1)) | scene.masks[0, frame])
    away = np.abs(shown - scene.frames[frame])[rows, columns][ground[rows, columns]]
    still = np.abs(scene.frames[0].astype(int) - scene.frames[frame])[rows, columns][ground[rows, columns]]
    assert np.median(away) < 1 + 10 * missed and np.median(away) < np.median(still) / 2


def test_the_ground_is_still_elsewhere():
    for make in (two_objects, short_line):
        scene = make(1)
        shown = (~scene.masks.any(axis=0)).all(axis=0)
        shown[1:-1, 1:-1] &= shown[:-2, 1:-1] & shown[2:, 1:-1] & shown[1:-1, :-2] & shown[1:-1, 2:]
        assert not scene.ground.any() and (np.ptp(scene.frames, axis=0)[shown] == 0).all()


@pytest.mark.parametrize("path", DRAWN_PATHS)
def test_drawn_paths(path, tmp_path):
    file = tmp_path / "motion.yaml"
    for seed in SEEDS:
        figure = drawn_figure(seed, path)
        centroids, radii = figure.center * (96, 64) - 0.5, figure.size[:, 0] * 48
        assert np.ptp(centroids, axis=0).max() >= FAR
        assert (figure.center - figure.size / 2 > 0).all() and (figure.center + figure.size / 2 < 1).all()
        assert (radii[-1] / radii[0] >= 1.5) if path == "zoom" else np.ptp(radii) < 1e-9
        steps = np.diff(centroids, axis=0)
        assert (np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 1e-9) == (path in ("line", "zoom"))
        file.write_text(motion_text(figure))
        read = read_drawing(file)
        assert isinstance(read, Drawing) and read.camera is None
        (found,) = read.figures
        assert found.shape == figure.shape
        for name in ("times", "center", "size"):
            assert np.allclose(getattr(found, name), getattr(figure, name), atol=1e-5)
