"""The shipped small models, their tokenizer, and the random model that other tests use."""

import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from made_videos import first_seed, measured_centroids
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from tiny_pipelines import build_pipeline
from transformers import T5Tokenizer

from ditflow.errors import DitflowError
from ditflow.models.families import shipped_folder
from ditflow.models.loading import ModelFolder
from ditflow.settings import Settings
from ditflow.small import SMALL_MODELS
from ditflow.small.clips import made_clip
from ditflow.small.pipeline import random_text_encoder
from ditflow.small.vocabulary import COLOURS, SHAPES
from ditflow.small.wan_pipeline import random_umt5

PROMPT = "a red circle on a blue background"
OTHER_PROMPT = "a blue circle on a red background"
NOISE = torch.randn(1, 6, 8, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pipeline(small_folder):
    return load(small_folder, torch.float32)


def load(folder, dtype):
    pipeline = CogVideoXPipeline.from_pretrained(folder, local_files_only=True).to(dtype)
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
    assert ((frames == 0) | (frames == 1)).float().mean() < 0.3  # few pixels are clipped


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_nearly_the_same(small_folder, pipeline, dtype):
    size = {"height": 32, "width": 32, "num_frames": 8}  # CPUs are slow at convolutions in float16
    expected = sample(pipeline, **size)
    difference = (sample(load(small_folder, dtype), **size) - expected).square().mean().sqrt()
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
    clip = made_clip(first_seed(path="line"))
    pixels = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert 0.5 < latents.std() < 2.0
    energy = (latents - latents.median(dim=2, keepdim=True).values).square().sum(dim=1)[0].numpy()
    energy *= energy > energy.max(axis=(1, 2), keepdims=True) / 2
    truth = (clip.centroids.reshape(6, 4, 2).mean(axis=1) - 1.5) / 4  # in latent pixels
    start, end = measured_centroids(energy[[0, 5]])  # in the middle frames the median hides the shape
    moved = truth[5] - truth[0]
    assert (end - start) @ moved / np.linalg.norm(moved) ** 2 > 0.6


def test_same_seed_same_bytes(small_folder, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_pipeline(tmp_path / "again")
    assert torch.equal(torch.rand(4), expected)  # the caller's random state is unchanged
    build_pipeline(tmp_path / "other", seed=1)
    assert contents(tmp_path / "again") == contents(small_folder)
    other = contents(tmp_path / "other")
    changed = {path.parts[0] for path, data in contents(small_folder).items() if other[path] != data}
    assert changed == {"transformer", "vae"}


@pytest.fixture(params=SMALL_MODELS)
def shipped(request):
    return request.param, shipped_folder(request.param)


def test_shipped_folders_are_small_and_without_pickles():
    for name in SMALL_MODELS:
        files = contents(shipped_folder(name))
        assert sum(map(len, files.values())) < 8 * 2**20
        assert {path.suffix for path in files} == {".json", ".safetensors", ".model"}
        assert "tokenizer.json" not in {path.name for path in files}  # it would override spiece.model


def test_shipped_weights_are_float16_and_finite(shipped):
    _, folder = shipped
    weights = [load_file(path) for path in folder.rglob("*.safetensors")]
    assert len(weights) == 3
    for tensor in (tensor for part in weights for tensor in part.values()):
        assert tensor.dtype == torch.float16 and tensor.isfinite().all()


def test_shipped_models_differ_in_their_transformers_alone():
    rope, sincos = (contents(shipped_folder(name)) for name in ("small", "small-sincos"))
    assert {path.parts[0] for path, data in rope.items() if sincos.get(path) != data} == {"transformer"}
    assert rope.keys() == sincos.keys()


def test_shipped_model_loads_by_its_name(shipped):
    name, path = shipped
    folder = ModelFolder(name, "float32", torch.device("cpu"))
    assert folder.path == path
    backbone = folder.transformer()
    kind = folder.family.embedding_kind(folder.config("transformer"))
    assert kind == ("additive" if name == "small-sincos" else "rotary")
    assert max(Settings(model=name).guidance_blocks) < len(backbone.blocks)
    encoder = folder.text_encoder().layers.state_dict()
    made = random_umt5() if name == "small-wan" else random_text_encoder()
    layers = made.encoder.block.state_dict()
    assert layers and all(torch.equal(encoder[key], value) for key, value in layers.items())


@pytest.mark.parametrize("name", ["small", "small-wan"])
def test_shipped_autoencoder_knows_held_out_clips(name):
    folder = ModelFolder(name, "float32", torch.device("cpu"))
    vae, clip = folder.autoencoder(), made_clip(3).frames
    again = vae.decode(vae.encode(torch.from_numpy(clip)), len(clip), "none").numpy()
    assert 10 * np.log10(255**2 / np.square(again - clip.astype(float)).mean()) > 22


def test_sincos_has_a_positional_embedding():
    transformer = load(shipped_folder("small-sincos"), torch.float32).transformer
    embedding = transformer.patch_embed.pos_embedding[0]
    assert embedding.shape == (16 + 576, 128)
    assert embedding[:16].abs().max() == 0
    assert len(embedding[16:].unique(dim=0)) == 576  # each place its own
    assert not hasattr(load(shipped_folder("small"), torch.float32).transformer.patch_embed, "pos_embedding")


def test_colours_and_shapes_are_single_tokens():
    tokenizer = T5Tokenizer.from_pretrained(shipped_folder("small") / "tokenizer")
    ids = [tokenizer(word).input_ids for word in (*COLOURS, *SHAPES)]
    assert all(len(pair) == 2 and tokenizer.unk_token_id not in pair for pair in ids)  # the word and the end
    assert len({word for word, _ in ids}) == 12
    assert len(tokenizer(PROMPT).input_ids) == 8


@pytest.mark.parametrize("text", ["A Zebra, reduced!", "the dog's  42 balls", "", "blue"])
def test_tokenizer_reads_any_text_as_sentencepiece_does(text):
    folder = shipped_folder("small")
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(text).input_ids
    assert ids[:-1] == SentencePieceProcessor(model_file=str(folder / "tokenizer/spiece.model")).encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.lower().split()


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(CogVideoXPipeline, "save_config", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_pipeline(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(DitflowError, match="not an empty folder"):
        build_pipeline(tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine.txt"]


def test_package_imports_without_torch():
    code = "import sys, ditflow.small; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
