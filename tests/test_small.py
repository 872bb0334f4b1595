"""The small model with random weights, its tokenizer, and the made clips."""

import itertools
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from sentencepiece import SentencePieceProcessor
from transformers import T5Tokenizer

from ditflow.errors import DitflowError, SettingsError
from ditflow.small import build, clips, pipeline_folder
from ditflow.small.vocabulary import COLOURS, SHAPES
from ditflow.video import read_clip

PROMPT = "a red circle on a blue background"
OTHER_PROMPT = "a blue circle on a red background"
NOISE = torch.randn(1, 6, 8, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    build.build_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return load(folder, torch.float32)


def load(folder, dtype):
    pipeline = CogVideoXPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def embed(pipeline, prompt):
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=16)[0]


def velocity(pipeline, latents, prompt):
    rope = pipeline._prepare_rotary_positional_embeddings(64, 96, 6, latents.device)
    text, timestep = embed(pipeline, prompt), torch.tensor([600])
    return pipeline.transformer(latents, text, timestep, image_rotary_emb=rope).sample


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sample(pipeline, **size):
    """Frames [frames, 3, height, width] after two steps, 0 ... 1."""
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 2, "max_sequence_length": 16, "output_type": "pt"}
    return pipeline(PROMPT, generator=generator, **settings, **size).frames[0].float()


def test_two_steps_end_to_end(pipeline):
    frames = sample(pipeline)
    assert frames.shape == (24, 3, 64, 96)
    assert frames.std(dim=(-2, -1)).min() > 0.05  # every channel of every frame shows something
    assert (frames[1:] - frames[:-1]).abs().mean() > 0.01
    assert ((frames == 0) | (frames == 1)).float().mean() < 0.3  # not clipped away


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_nearly_the_same(folder, pipeline, dtype):
    size = {"height": 32, "width": 32, "num_frames": 8}  # CPUs are slow at convolutions in float16
    expected = sample(pipeline, **size)
    difference = (sample(load(folder, dtype), **size) - expected).square().mean().sqrt()
    assert difference < 0.25 * expected.std()


def test_prompts_matter(pipeline):
    one, other = embed(pipeline, PROMPT), embed(pipeline, OTHER_PROMPT)
    assert (one - other).norm() > 0.2 * other.norm()
    with torch.no_grad():
        one, other = (velocity(pipeline, NOISE, prompt) for prompt in (PROMPT, OTHER_PROMPT))
    assert 0.5 < other.std() < 2.0
    assert (one - other).norm() > 0.02 * other.norm()


def test_every_block_passes_a_gradient_to_the_latents(pipeline):
    latents = NOISE.clone().requires_grad_()
    keys = []
    hooks = [
        block.attn1.norm_k.register_forward_hook(lambda _, __, output: keys.append(output))
        for block in pipeline.transformer.transformer_blocks
    ]
    velocity(pipeline, latents, PROMPT)
    for hook in hooks:
        hook.remove()
    assert len(keys) == 6
    for key in keys:
        probe = torch.randn(key.shape, generator=torch.Generator().manual_seed(2))
        (gradient,) = torch.autograd.grad((key * probe).sum(), latents, retain_graph=True)
        assert gradient.square().mean().sqrt() > 1.0


def test_vae_keeps_the_place_of_a_shape(pipeline):
    clip = clips.made_clip(first_seed(path="line"))
    pixels = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert 0.5 < latents.std() < 2.0
    energy = (latents - latents.median(dim=2, keepdim=True).values).square().sum(dim=1)[0].numpy()
    energy *= energy > energy.max(axis=(1, 2), keepdims=True) / 2
    truth = (clip.centroids.reshape(6, 4, 2).mean(axis=1) - 1.5) / 4  # in latent pixels
    start, end = measured_centroids(energy[[0, 5]])  # in the middle the median hides the shape
    moved = truth[5] - truth[0]
    assert (end - start) @ moved / np.linalg.norm(moved) ** 2 > 0.6


def test_same_seed_same_bytes(folder, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build.build_pipeline(tmp_path / "again")
    assert torch.equal(torch.rand(4), expected)  # the caller's random state is as it was
    build.build_pipeline(tmp_path / "other", seed=1)
    assert contents(tmp_path / "again") == contents(folder)
    other = contents(tmp_path / "other")
    changed = {path.parts[0] for path, data in contents(folder).items() if other[path] != data}
    assert changed == {"transformer", "vae", "text_encoder"}


def test_folder_is_small_and_without_pickles(folder):
    files = contents(folder)
    assert sum(map(len, files.values())) < 16 * 2**20
    assert {path.suffix for path in files} == {".json", ".safetensors", ".model"}
    assert "tokenizer.json" not in {path.name for path in files}  # it would override spiece.model


def test_sincos_has_a_positional_embedding(folder, tmp_path):
    build.build_pipeline(tmp_path / "sincos", positional="sincos")
    transformer = load(tmp_path / "sincos", torch.float32).transformer
    assert not transformer.config.use_rotary_positional_embeddings
    embedding = transformer.patch_embed.pos_embedding[0]
    assert embedding.shape == (16 + 576, 128)
    assert embedding[:16].abs().max() == 0
    assert len(embedding[16:].unique(dim=0)) == 576  # each place its own
    assert not hasattr(load(folder, torch.float32).transformer.patch_embed, "pos_embedding")


def test_colours_and_shapes_are_single_tokens(folder):
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    ids = [tokenizer(word).input_ids for word in (*COLOURS, *SHAPES)]
    assert all(len(pair) == 2 and tokenizer.unk_token_id not in pair for pair in ids)  # the word and the end
    assert len({word for word, _ in ids}) == 12
    assert len(tokenizer(PROMPT).input_ids) == 8


@pytest.mark.parametrize("text", ["A Zebra, reduced!", "the dog's  42 balls", "", "blue"])
def test_tokenizer_reads_any_text_as_sentencepiece_does(folder, text):
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(text).input_ids
    assert ids[:-1] == SentencePieceProcessor(model_file=str(folder / "tokenizer/spiece.model")).encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.lower().split()


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(CogVideoXPipeline, "save_config", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build.build_pipeline(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_built_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="learned.*rope or sincos"):
        build.build_pipeline(tmp_path / "model", positional="learned")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(DitflowError, match="not an empty folder"):
        build.build_pipeline(tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine.txt"]


def test_cache_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = pipeline_folder()
    assert folder.parent == tmp_path / "ditflow" and (folder / "model_index.json").is_file()
    monkeypatch.setattr(build, "build_pipeline", None)
    assert pipeline_folder() == folder


def test_two_processes_build_at_once(tmp_path, monkeypatch):
    """While one build is under way, another one finishes: the first gives way and leaves it alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_config = CogVideoXPipeline.save_config

    def overtaken(pipeline, unfinished):
        monkeypatch.setattr(CogVideoXPipeline, "save_config", save_config)
        (pipeline_folder() / "theirs").touch()
        save_config(pipeline, unfinished)

    monkeypatch.setattr(CogVideoXPipeline, "save_config", overtaken)
    folder = pipeline_folder()
    assert (folder / "theirs").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_unwritable_cache_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DitflowError, match="XDG_CACHE_HOME"):
        pipeline_folder()


def test_package_imports_without_torch():
    code = "import sys, ditflow.small; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def first_seed(**wanted):
    """The lowest seed whose scene is plain and as wanted."""
    for seed in itertools.count():
        scene = clips.made_clip(seed, frames=2).scene
        if scene.backdrop == "plain" and all(getattr(scene, name) == it for name, it in wanted.items()):
            return seed


def measured_centroids(weights):
    """(x, y) of the centre of mass of each frame, [frames, 2], from weights [frames, height, width]."""
    height, width = weights.shape[1:]
    masses = weights.sum(axis=(1, 2))
    x, y = weights.sum(axis=1) @ np.arange(width), weights.sum(axis=2) @ np.arange(height)
    return np.stack([x / masses, y / masses], axis=1)


def shape_coverage(clip):
    """How much of each pixel the shape covers, [frames, height, width], from the pixels and the caption."""
    article, colour, shape, on, another, background, word = clip.caption.split()
    front, back = (np.array(COLOURS[name], dtype=float) for name in (colour, background))
    return (clip.frames - back) @ (front - back) / ((front - back) @ (front - back))


@pytest.mark.parametrize("path", clips.PATHS)
@pytest.mark.parametrize(("shape", "share"), [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5)])
def test_centroid_and_caption_agree_with_the_pixels(shape, share, path):
    clip = clips.made_clip(first_seed(shape=shape, path=path))
    coverage = shape_coverage(clip)
    assert coverage.min() > -0.02 and coverage.max() < 1.02  # a mixture of the two colours, nothing else
    assert len(np.unique(coverage.round(2))) > 4  # antialiased
    assert np.abs(measured_centroids(coverage) - clip.centroids).max() < 0.2  # samples are 1/4 apart
    assert coverage.sum(axis=(1, 2)) == pytest.approx(np.pi * clip.scene.radii**2, rel=0.05)  # none cut off
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
        assert travel > 10 if clip.scene.path != "zoom" else not 0.7 < growth < 1.4
        assert (clip.frames[0, 0] != clip.frames[0, -1]).any() or clip.scene.backdrop == "plain"


def test_a_seed_is_a_clip():
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
