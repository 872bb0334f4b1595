"""The quality measures of the small models must report the truth about made clips."""

import re
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from made_videos import measured_centroids

from ditflow.guidance import targets
from ditflow.models.families import family_of
from ditflow.small import clips
from ditflow.small.clips import made_clip
from ditflow.small.quality import __main__ as quality
from ditflow.small.quality import classifier
from ditflow.small.quality.motion_reading import read_blocks
from ditflow.small.sight import largest_piece, look
from ditflow.small.training.split import held_out_prompts
from ditflow.small.truth import true_flow
from ditflow.small.vocabulary import COLOURS, caption

CLIPS = [made_clip(seed) for seed in range(12)]


@pytest.mark.parametrize("clip", CLIPS, ids=[clip.caption for clip in CLIPS])
def test_a_made_clip_is_detected(clip):
    sight = look(clip.frames)
    assert (sight.colour, sight.background) == (clip.scene.colour, clip.scene.background)
    assert sight.coherent
    assert np.abs(sight.centroids - clip.centroids).max() < 0.4
    scene, (height, width) = clip.scene, clip.frames.shape[1:3]
    places = zip(scene.centroids, scene.radii, strict=True)
    painted = [clips.coverage(scene.shape, place, radius, width, height) for place, radius in places]
    # a square moves in steps of 1/4 pixel, so the painted centroid is the truth
    truth = np.linalg.norm(np.diff(measured_centroids(np.stack(painted)), n=2, axis=0), axis=1)
    assert np.median(np.abs(sight.acceleration - truth)) < 0.1


def test_noise_does_not_matter():
    noise = np.random.default_rng(0).normal(0, 8, CLIPS[0].frames.shape)
    sight = look((CLIPS[0].frames + noise).clip(0, 255).astype(np.uint8))
    assert (sight.colour, sight.background) == (CLIPS[0].scene.colour, CLIPS[0].scene.background)
    assert sight.coherent


def test_two_objects_in_one_frame_are_not_coherent():
    frames = CLIPS[0].frames.copy()
    frames[7] = np.where(np.arange(96)[:, None] < 48, frames[7], frames[7, :, ::-1])  # mirrored in one half
    frames[7, 2:14, 2:14] = COLOURS[CLIPS[0].scene.colour]
    frames[7, -14:-2, -14:-2] = COLOURS[CLIPS[0].scene.colour]
    sight = look(frames)
    assert not sight.coherent and sight.colour == CLIPS[0].scene.colour


def test_an_empty_video_is_seen_as_empty():
    sight = look(np.full((4, 64, 96, 3), COLOURS["cyan"], np.uint8))
    assert sight.background == "cyan" and sight.colour is None
    assert not sight.coherent and np.isnan(sight.centroids).all()


def test_largest_piece():
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]], bool)
    assert np.argwhere(largest_piece(mask)).tolist() == [[0, 0], [0, 1], [1, 1]]
    assert not largest_piece(mask & False).any()


@pytest.fixture(scope="module")
def network():
    return classifier.train_classifier(map(made_clip, range(10_000, 10_040)))


def test_classifier_knows_shapes_it_has_not_seen(network):
    assert sum(classifier.classify(network, look(clip.frames)) == clip.scene.shape for clip in CLIPS) >= 11
    assert classifier.classify(network, look(np.full((2, 64, 96, 3), COLOURS["black"], np.uint8))) is None


def test_reading_tells_true_flow_from_noise(monkeypatch):
    """The flow of one block is the truth, of another noise; the reading must tell them apart."""
    calls = iter(range(100))
    generator = np.random.default_rng(0)
    spans = family_of("small").latent_spans(24)

    def flow(query, key, grid, temperature, hard):
        clip, block = divmod(next(calls), 6)
        scene = CLIPS[clip].scene
        truth = true_flow(scene.centroids, scene.radii, 96, grid, spans)[0]
        noise = generator.integers(-3, 4, truth.shape)
        return torch.from_numpy(truth.round() if block == 4 else noise if block == 1 else 0 * truth)

    monkeypatch.setattr(targets, "motion_flow", flow)
    readings = read_blocks(quality.ModelFolder("small", "float32", torch.device("cpu")), CLIPS[:3])
    assert len(readings) == 6
    assert readings[4].correlation > 0.95 and readings[4].agreement > 0.8 and readings[4].stray == 0
    assert abs(readings[1].correlation) < 0.2 and readings[1].stray > 0.9
    assert readings[0].correlation is None and readings[0].agreement == readings[0].stray == 0


def test_report_counts_what_is_right(network, capsys, monkeypatch):
    """Made clips instead of the model's videos, of which only some match the prompts."""
    captions = [caption(*prompt) for prompt in held_out_prompts()]
    videos = [clip.frames for clip in CLIPS]
    for index in (3, 8):
        seeds = (seed for seed in range(10_000) if made_clip(seed, frames=1).caption == captions[index])
        videos[index] = made_clip(next(seeds)).frames
    monkeypatch.setattr(quality, "train_classifier", lambda clips: network)
    monkeypatch.setattr(quality, "held_out_prompts", lambda: held_out_prompts()[:12])
    quality.report(videos)
    colours, coherent, shapes, acceleration = capsys.readouterr().out.splitlines()
    assert colours == "both colours right   2 of 12"
    assert coherent == "one coherent object  12 of 12"
    assert 2 <= int(shapes.split()[2]) < 10
    assert 0.5 < float(re.search(r"([\d.]+) x", acceleration)[1]) < 2


def test_autoencoder_is_measured(capsys, monkeypatch):
    """With an autoencoder that makes every pixel 5 too bright."""
    monkeypatch.setattr(quality, "READ_CLIPS", 3)
    folder = Mock()
    folder.autoencoder().encode = lambda pixels: pixels
    folder.autoencoder().decode = lambda latents, frames, tile: latents[:frames].int() + 5
    quality.report_autoencoder(folder)
    psnr = 10 * np.log10(255**2 / 5**2)
    assert f" {psnr:.1f} dB PSNR ({psnr:.1f} to {psnr:.1f})" in capsys.readouterr().out


def test_model_is_measured_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "held_out_prompts", lambda: held_out_prompts()[:1])
    monkeypatch.setattr(quality, "READ_CLIPS", 2)
    monkeypatch.setattr(quality, "TEACHING_CLIPS", 3)
    monkeypatch.setattr(classifier, "STEPS", 10)
    monkeypatch.setattr(quality, "Settings", partial(quality.Settings, steps=4))
    assert quality.main(["small", "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("autoencoder") and lines[1].endswith(" of 1") and len(lines) == 6 + 6
    assert quality.Image.open(tmp_path / "sheet.png").size == (6 * 96, 64)


def test_missing_model_is_explained(capsys):
    assert quality.main(["./absent"]) == 1
    assert "absent" in capsys.readouterr().err
