"""Writes the small model as a diffusers pipeline folder: CogVideoX's classes, a few MB, random weights."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ditflow.errors import DitflowError, SettingsError
from ditflow.files import whole_or_absent
from ditflow.small.vocabulary import END, PADDING, UNKNOWN, tokenizer_model, vocabulary_size

FRAMES, HEIGHT, WIDTH = 24, 64, 96  # of a clip, pixels
COMPRESSION = 4  # of the VAE, in time and in each direction of space
LATENT_CHANNELS = 8
TEXT_LENGTH, TEXT_WIDTH = 16, 64

VAE = dict(
    down_block_types=("CogVideoXDownBlock3D",) * 3,
    up_block_types=("CogVideoXUpBlock3D",) * 3,
    block_out_channels=(16, 32, 32),
    latent_channels=LATENT_CHANNELS,
    layers_per_block=1,
    norm_num_groups=4,
    temporal_compression_ratio=COMPRESSION,
    sample_height=HEIGHT,
    sample_width=WIDTH,
    scaling_factor=1.18,
)
TRANSFORMER = dict(
    num_attention_heads=2,
    attention_head_dim=64,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    time_embed_dim=128,
    text_embed_dim=TEXT_WIDTH,
    num_layers=6,
    sample_width=WIDTH // COMPRESSION,
    sample_height=HEIGHT // COMPRESSION,
    sample_frames=FRAMES,
    patch_size=2,
    temporal_compression_ratio=COMPRESSION,
    max_text_seq_length=TEXT_LENGTH,
    spatial_interpolation_scale=1.0,
)
TEXT_ENCODER = dict(
    d_model=TEXT_WIDTH,
    d_kv=32,
    d_ff=128,
    num_layers=2,
    num_heads=2,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
    pad_token_id=0,
    eos_token_id=1,
)
SCHEDULER = dict(
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    snr_shift_scale=3.0,
    clip_sample=False,
)

# set by trial, so that a random network is an instrument: gates are open, attention picks out a few tokens
# (the text's among them, so that prompts matter), a clip's latents vary about as much as noise
GAINS = {
    "norm1.linear.weight": 2.0,
    "norm2.linear.weight": 2.0,
    "norm_q.weight": 1.7,
    "norm_k.weight": 1.7,
    "encoder.conv_out.conv.weight": 2.0,
}
BLUR_SHARE = 0.6  # of a 3 x 3 (x 3) convolution, so that a shape keeps its place; the rest is white


def build_pipeline(folder: Path, *, seed: int = 0, positional: str = "rope") -> None:
    """Write the small model to `folder` (absent or empty); the same seed gives the same bytes.

    `positional` is "rope" (as in CogVideoX-5B) or "sincos" (as in 2B). The folder appears whole or not at
    all. PyTorch's global random state is left as it was. Raises SettingsError for an unknown `positional`
    and DitflowError where something is in the way.
    """
    if positional not in ("rope", "sincos"):
        raise SettingsError(f"positional is {positional!r}: choose rope or sincos")
    write_pipeline(folder, **_random_models(seed, positional))


def write_pipeline(
    folder: Path,
    text_encoder: T5EncoderModel,
    transformer: CogVideoXTransformer3DModel,
    vae: AutoencoderKLCogVideoX,
) -> None:
    """Write a pipeline folder of these networks, the latter two in float16; see `build_pipeline`."""
    with _new_folder(Path(folder)) as unfinished:
        write_tokenizer(unfinished / "tokenizer")
        pipeline = CogVideoXPipeline(
            tokenizer=T5Tokenizer.from_pretrained(unfinished / "tokenizer"),
            scheduler=CogVideoXDDIMScheduler(**SCHEDULER),
            text_encoder=text_encoder,
            transformer=transformer.half(),
            vae=vae.half(),
        )
        for name in ("transformer", "vae", "text_encoder", "scheduler"):
            getattr(pipeline, name).save_pretrained(unfinished / name)
        pipeline.save_config(unfinished)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder`, which must be absent or empty."""
    in_the_way = DitflowError(f"{folder} exists and is not an empty folder: remove it or name another one")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise in_the_way
    try:
        with whole_or_absent(folder) as unfinished:
            unfinished.mkdir()
            yield unfinished
    except OSError:
        if folder.exists():  # another process was faster
            raise in_the_way from None
        raise


def write_tokenizer(folder: Path) -> None:
    """T5's tokenizer from a sentencepiece model; no tokenizer.json, which would be read in its place."""
    folder.mkdir()
    (folder / "spiece.model").write_bytes(tokenizer_model())
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": TEXT_LENGTH,
        "extra_ids": 0,
        "additional_special_tokens": [],
        "pad_token": PADDING,
        "eos_token": END,
        "unk_token": UNKNOWN,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _random_models(seed: int, positional: str) -> dict[str, nn.Module]:
    """The three networks by their names in a pipeline, their weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        text_encoder = T5EncoderModel(T5Config(vocab_size=vocabulary_size(), **TEXT_ENCODER))
        transformer = CogVideoXTransformer3DModel(
            use_rotary_positional_embeddings=positional == "rope", **TRANSFORMER
        )
        vae = AutoencoderKLCogVideoX(**VAE)
        for name, weights in text_encoder.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                nn.init.normal_(weights, std=3.0)  # so that the order of words is seen
        _randomise(transformer)
        _randomise(vae)
    return {"text_encoder": text_encoder, "transformer": transformer, "vae": vae}


def random_text_encoder() -> T5EncoderModel:
    """The text encoder of every small model, trained or not: random and never trained."""
    return _random_models(0, "rope")["text_encoder"]


@torch.no_grad()
def _randomise(network: nn.Module) -> None:
    """Normal weights that keep a signal's variance, biases of 0.1, norms near but not at the identity."""
    for name, weights in network.named_parameters():
        if weights.ndim == 1:
            nn.init.normal_(weights, mean=1.0 if name.endswith("weight") else 0.0, std=0.1)
        else:
            nn.init.normal_(weights, std=1 / math.sqrt(weights[0].numel()))
        if weights.ndim > 2 and set(weights.shape[2:]) == {3}:
            weights.mul_(1 - BLUR_SHARE).add_(_random_blur(weights.shape), alpha=BLUR_SHARE)
        for ending, gain in GAINS.items():
            if name.endswith(ending):
                weights.mul_(gain)


def _random_blur(shape: torch.Size) -> torch.Tensor:
    """Convolution weights [out, in, (3,) 3, 3]: channels mixed at random, each smoothed in space."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = line[:, None] * line
    if len(shape) == 5:  # time is causal: the last tap is the frame itself
        kernel = torch.stack([torch.zeros(3, 3), torch.zeros(3, 3), kernel])
    return torch.randn(shape[:2] + (1,) * kernel.ndim) / math.sqrt(shape[1]) * kernel
