"""The true motion of made clips, and the videos for which it is known."""

import numpy as np
import pytest

from ditflow import Settings, video
from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.small.clips import PATHS, made_clip
from ditflow.small.clips import main as write_made_clip
from ditflow.small.truth import true_flow, true_flow_of

GRID = Grid(6, 8, 12)
GROUPS = {  # video frames: those of each latent frame
    24: [range(0, 4), range(4, 8), range(8, 12), range(12, 16), range(16, 20), range(20, 24)],
    9: [range(0, 1), range(1, 5), range(5, 9)],
    10: [range(0, 1), range(1, 5), range(5, 9), range(9, 10)],  # the autoencoder gets the last frame twice
    14: [range(0, 2), range(2, 6), range(6, 10), range(10, 14)],
}


@pytest.mark.parametrize("path", PATHS)
def test_true_flow_leads_along_the_path(path):
    clip = next(clip for clip in map(made_clip, range(100)) if clip.scene.path == path)
    flow, inside = true_flow(clip.centroids, clip.scene.radii, 96, GRID, GROUPS[24])
    centres = clip.centroids.reshape(6, 4, 2).mean(axis=1) / 8  # in patches
    for query, key in [(0, 5), (3, 2)]:
        chosen = inside[query]
        assert 1 <= chosen.sum() <= 20
        mean = flow[query, key, chosen].mean(axis=0)
        assert np.abs(mean - (centres[key] - centres[query])).max() < 0.5
        assert not flow[query, key, ~chosen].any()
    y, x = np.divmod(np.flatnonzero(inside[0]), 12)
    pixels = clip.frames[1, 8 * y + 4, 8 * x + 4].astype(float)
    background = clip.frames[1, 0, 0].astype(float)
    assert np.mean(np.linalg.norm(pixels - background, axis=1) > 40) > 0.5  # the shape is there


@pytest.mark.parametrize("frames", GROUPS)
def test_frames_are_grouped_as_by_the_autoencoder(frames):
    """The speed changes with each frame, so displacements show which frames were averaged."""
    centroids = np.stack([np.arange(frames) ** 2, np.zeros(frames)], axis=-1) + 20.0
    groups, spans = GROUPS[frames], family_of("small").latent_spans(frames)
    flow, inside = true_flow(centroids, np.full(frames, 12.0), 96, Grid(len(groups), 8, 12), spans)
    means = [np.mean([centroids[index, 0] for index in group]) / 8 for group in groups]
    token = np.flatnonzero(inside[0])[0]
    assert flow[0, :, token, 0] == pytest.approx([mean - means[0] for mean in means])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "made.mp4"
    assert write_made_clip([str(path), "--seed", "5"]) == 0
    return path


def test_a_written_clip_is_recognised(written):
    clip = made_clip(5)
    found = true_flow_of(Settings(model="small", video=str(written)), GRID)
    assert np.array_equal(found, true_flow(clip.centroids, clip.scene.radii, 96, GRID, GROUPS[24])[0])
    enlarged = Settings(model="small", video=str(written), size="192x128")
    assert np.array_equal(found, true_flow_of(enlarged, GRID))
    part = Settings(model="small", video=str(written), start=3, stride=2, frames=9)
    expected = true_flow(clip.centroids[3:21:2], clip.scene.radii[3:21:2], 96, Grid(3, 8, 12), GROUPS[9])[0]
    assert np.array_equal(true_flow_of(part, Grid(3, 8, 12)), expected)


def test_other_videos_have_no_true_flow(written, tmp_path):
    assert true_flow_of(Settings(model="small", video=str(written), fps=5), GRID) is None
    assert true_flow_of(Settings(model="small", video=str(written), size="96x96"), GRID) is None
    clip = video.read_clip(written, frames=24, size=None)
    video.write_clip(clip, tmp_path / "copy.mp4", metadata="seed 5")
    video.write_clip(clip, tmp_path / "frames")
    (tmp_path / "text.mp4").write_text("no video")
    for other in ("copy.mp4", "frames", "text.mp4", "absent.mp4"):
        assert true_flow_of(Settings(model="small", video=str(tmp_path / other)), GRID) is None
