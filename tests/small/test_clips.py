"""Made clips: the pixels agree with the caption, the centroids and the seed."""

import numpy as np
import pytest
from made_videos import first_seed, measured_centroids

from ditflow.small import clips
from ditflow.small.vocabulary import COLOURS, SHAPES
from ditflow.video import read_clip


def shape_coverage(clip):
    """The share of each pixel that the shape covers, [frames, height, width], from pixels and caption."""
    article, colour, shape, on, another, background, word = clip.caption.split()
    front, back = (np.array(COLOURS[name], dtype=float) for name in (colour, background))
    return (clip.frames - back) @ (front - back) / ((front - back) @ (front - back))


@pytest.mark.parametrize("path", clips.PATHS)
@pytest.mark.parametrize(("shape", "share"), [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5)])
def test_centroid_and_caption_agree_with_the_pixels(shape, share, path):
    clip = clips.made_clip(first_seed(shape=shape, path=path))
    coverage = shape_coverage(clip)
    assert coverage.min() > -0.02 and coverage.max() < 1.02  # only mixtures of the two colours
    assert len(np.unique(coverage.round(2))) > 4  # antialiased
    assert np.abs(measured_centroids(coverage) - clip.centroids).max() < 0.2  # samples are 1/4 apart
    assert coverage.sum(axis=(1, 2)) == pytest.approx(np.pi * clip.scene.radii**2, rel=0.05)  # not cut off
    box = np.ptp(np.argwhere(coverage[0] > 0.5), axis=0) + 1
    assert coverage[0].sum() / box.prod() == pytest.approx(share, abs=0.1)


def test_clips_vary_and_move():
    made = [clips.made_clip(seed, frames=8) for seed in range(80)]
    choices = {"shape": SHAPES, "colour": COLOURS, "backdrop": clips.BACKDROPS, "path": clips.PATHS}
    for name, names in choices.items():
        assert {getattr(clip.scene, name) for clip in made} == set(names)
    for clip in made:
        assert clip.scene.colour != clip.scene.background and "a orange" not in clip.caption
        travel = np.linalg.norm(np.diff(clip.centroids, axis=0), axis=1).sum()
        growth = clip.scene.radii[-1] / clip.scene.radii[0]
        assert travel > 10 if clip.scene.path != "zoom" else not 0.8 < growth < 1.25
        assert (clip.frames[0, 0] != clip.frames[0, -1]).any() or clip.scene.backdrop == "plain"


def test_a_seed_determines_the_clip():
    frames = clips.made_clip(5).frames
    assert np.array_equal(frames, clips.made_clip(5).frames)
    assert not np.array_equal(frames, clips.made_clip(6).frames)


def test_clip_of_another_size():
    clip = clips.made_clip(first_seed(path="bounce"), frames=5, width=40, height=120)
    assert clip.frames.shape == (5, 120, 40, 3)
    assert np.abs(measured_centroids(shape_coverage(clip)) - clip.centroids).max() < 0.2


def test_program_writes_a_clip(tmp_path, capsys):
    target = tmp_path / "clip.mp4"
    assert clips.main([str(target), "--seed", "3"]) == 0
    made = clips.made_clip(3)
    assert capsys.readouterr().out.splitlines() == [str(target), made.caption]
    written = read_clip(target, frames=24, size=None)
    assert written.frame_rate == 8
    assert np.abs(written.frames.astype(int) - made.frames).mean() < 8


def test_program_explains_what_it_cannot_do(tmp_path, capsys):
    assert clips.main([str(tmp_path / "clip.xyz")]) == 2
    assert ".xyz" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        clips.main([str(tmp_path / "clip.mp4"), "--seed", "-1"])
    assert stopped.value.code == 2
