"""The small model with random weights, its tokenizer, and the made clips."""

import itertools
import subprocess
import sys

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    build.build_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return load(folder, torch.float32)


@pytest.fixture(scope="module")
def noise():
    return torch.randn(1, 6, 8, 16, 24, generator=torch.Generator().manual_seed(1))


def load(folder, dtype):
    pipeline = CogVideoXPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def embed(pipeline, prompt):
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=16)[0]


def velocity(pipeline, latents, prompt):
    rope = pipeline._prepare_rotary_positional_embeddings(64, 96, 6, latents.device)
    return pipeline.transformer(
        latents, embed(pipeline, prompt), torch.tensor([600]), image_rotary_emb=rope, return_dict=False
    )[0]


def relative_difference(one, other):
    return ((one - other).norm() / other.norm()).item()


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def sample(pipeline, **size):
    """Frames [frames, 3, height, width] after two steps, 0 ... 1."""
    generator = torch.Generator().manual_seed(0)
    video = pipeline(
        PROMPT, num_inference_steps=2, max_sequence_length=16, generator=generator, output_type="pt", **size
    )
    return video.frames[0].float()


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


def test_prompts_matter(pipeline, noise):
    assert relative_difference(embed(pipeline, PROMPT), embed(pipeline, OTHER_PROMPT)) > 0.2
    with torch.no_grad():
        one, other = (velocity(pipeline, noise, prompt) for prompt in (PROMPT, OTHER_PROMPT))
    assert 0.5 < other.std() < 2.0
    assert relative_difference(one, other) > 0.02


def test_every_block_passes_a_gradient_to_the_latents(pipeline, noise):
    latents = noise.clone().requires_grad_()
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
    y, x = np.mgrid[0:16, 0:24]
    truth = (clip.centroids.reshape(6, 4, 2).mean(axis=1) - 1.5) / 4  # in latent pixels
    ends = [0, 5]  # in the middle the median hides the shape
    found = np.array([(np.average(x, weights=energy[i]), np.average(y, weights=energy[i])) for i in ends])
    moved = truth[5] - truth[0]
    assert (found[1] - found[0]) @ moved / np.linalg.norm(moved) ** 2 > 0.6


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


def test_sincos_has_a_positional_embedding(folder, tmp_path, noise):
    build.build_pipeline(tmp_path / "sincos", positional="sincos")
    transformer = load(tmp_path / "sincos", torch.float32).transformer
    assert not transformer.config.use_rotary_positional_embeddings
    embedding = transformer.patch_embed.pos_embedding[0]
    assert embedding.shape == (16 + 576, 128)
    assert embedding[:16].abs().max() == 0
    assert len(embedding[16:].unique(dim=0)) == 576  # each place its own
    text = torch.zeros(1, 16, 64)
    with torch.no_grad():
        flat = transformer.patch_embed(text, torch.ones(1, 6, 8, 16, 24))[0, 16:]
    assert len(flat.unique(dim=0)) == 576
    assert not hasattr(load(folder, torch.float32).transformer.patch_embed, "pos_embedding")


def test_unknown_positional_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="learned.*rope or sincos"):
        build.build_pipeline(tmp_path / "model", positional="learned")


def test_colours_and_shapes_are_single_tokens(folder):
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    for word in (*COLOURS, *SHAPES):
        assert tokenizer(word).input_ids == [tokenizer.convert_tokens_to_ids(f"▁{word}"), 1]
        assert tokenizer.unk_token_id not in tokenizer(word).input_ids
    ids = [tokenizer(word).input_ids[0] for word in (*COLOURS, *SHAPES)]
    assert len(set(ids)) == 12
    assert len(tokenizer(PROMPT).input_ids) == 8


@pytest.mark.parametrize("text", ["A Zebra, reduced!", "the dog's  42 balls", "", "blue"])
def test_tokenizer_reads_any_text_as_sentencepiece_does(folder, text):
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(text).input_ids
    assert ids[:-1] == SentencePieceProcessor(model_file=str(folder / "tokenizer/spiece.model")).encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.lower().split()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch, interruption):
    def interrupt(*_):
        raise interruption

    monkeypatch.setattr(CogVideoXPipeline, "save_config", interrupt)  # the last thing written
    with pytest.raises(interruption):
        build.build_pipeline(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(DitflowError, match="not an empty folder"):
        build.build_pipeline(tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine.txt"]


def test_cache_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = pipeline_folder()
    assert folder.parent == tmp_path / "ditflow"
    assert (folder / "model_index.json").is_file()
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


def shape_coverage(clip):
    """How much of each pixel the shape covers, [frames, height, width], from the pixels and the caption."""
    article, colour, shape, on, another, background, word = clip.caption.split()
    front, back = (np.array(COLOURS[name], dtype=float) for name in (colour, background))
    return (clip.frames - back) @ (front - back) / ((front - back) @ (front - back))


@pytest.mark.parametrize("path", clips.PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_centroid_and_caption_agree_with_the_pixels(shape, path):
    clip = clips.made_clip(first_seed(shape=shape, path=path))
    coverage = shape_coverage(clip)
    assert coverage.min() > -0.02 and coverage.max() < 1.02  # a mixture of the two colours, nothing else
    assert len(np.unique(coverage.round(2))) > 4  # antialiased
    y, x = np.mgrid[0:64, 0:96]
    for covered, centroid, radius in zip(coverage, clip.centroids, clip.scene.radii, strict=True):
        found = (np.average(x, weights=covered), np.average(y, weights=covered))
        assert np.abs(found - centroid).max() < 0.2  # samples are 1/4 apart
        assert covered.sum() == pytest.approx(np.pi * radius**2, rel=0.05)  # all of it is in the picture


def test_shapes_are_told_apart():
    """The share of its bounding box that a shape fills."""
    for shape, share in (("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5)):
        clip = clips.made_clip(first_seed(shape=shape))
        covered = shape_coverage(clip)[0]
        box = np.ptp(np.argwhere(covered > 0.5), axis=0) + 1
        assert covered.sum() / box.prod() == pytest.approx(share, abs=0.1)


def test_clips_vary_and_move():
    made = [clips.made_clip(seed, frames=8) for seed in range(80)]
    for name, choices in (
        ("shape", SHAPES),
        ("colour", COLOURS),
        ("background", COLOURS),
        ("backdrop", clips.BACKDROPS),
        ("path", clips.PATHS),
    ):
        assert {getattr(clip.scene, name) for clip in made} == set(choices)
    for clip in made:
        assert clip.scene.colour != clip.scene.background
        travel = np.linalg.norm(np.diff(clip.centroids, axis=0), axis=1).sum()
        growth = clip.scene.radii[-1] / clip.scene.radii[0]
        assert travel > 10 if clip.scene.path != "zoom" else not 0.7 < growth < 1.4
        assert (clip.frames[0, 0] != clip.frames[0, -1]).any() or clip.scene.backdrop == "plain"


def test_clip_depends_on_its_seed_alone():
    first = clips.made_clip(5)
    np.random.seed(0)
    again = clips.made_clip(5)
    assert np.array_equal(first.frames, again.frames) and first.caption == again.caption
    assert not np.array_equal(first.frames, clips.made_clip(6).frames)


def test_clip_of_another_size():
    clip = clips.made_clip(first_seed(path="bounce"), frames=5, width=40, height=120)
    assert clip.frames.shape == (5, 120, 40, 3)
    y, x = np.mgrid[0:120, 0:40]
    for covered, centroid in zip(shape_coverage(clip), clip.centroids, strict=True):
        found = (np.average(x, weights=covered), np.average(y, weights=covered))
        assert np.abs(found - centroid).max() < 0.2  # samples are 1/4 apart


def test_caption_uses_the_right_article():
    captions = {clips.made_clip(seed, frames=1).caption for seed in range(60)}
    assert any(caption.startswith("an orange ") for caption in captions)
    assert not any("a orange" in caption for caption in captions)


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
