"""The configuration of `small` and `small-sincos`, and how to write a pipeline folder."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    SchedulerMixin,
)
from torch import nn
from transformers import PretrainedConfig, T5Config, T5EncoderModel, T5Tokenizer

from ditflow.errors import DitflowError
from ditflow.files import whole_or_absent
from ditflow.small.vocabulary import END, PADDING, UNKNOWN, tokenizer_model, vocabulary_size

Encoder = TypeVar("Encoder", bound=nn.Module)

FRAMES, HEIGHT, WIDTH = 24, 64, 96  # of a clip; frames and pixels
COMPRESSION = 4  # the VAE's, in time and in both spatial directions
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


def write_pipeline(
    folder: Path,
    text_encoder: T5EncoderModel,
    transformer: CogVideoXTransformer3DModel,
    vae: AutoencoderKLCogVideoX,
) -> None:
    """Write these networks as a CogVideoX pipeline folder; see `write_folder`."""
    networks = {"text_encoder": text_encoder, "transformer": transformer, "vae": vae}
    write_folder(folder, CogVideoXPipeline, networks, CogVideoXDDIMScheduler(**SCHEDULER))


def write_folder(
    folder: Path, kind: type[DiffusionPipeline], networks: Mapping[str, nn.Module], scheduler: SchedulerMixin
) -> None:
    """Write networks (by part), a scheduler and the tokenizer as a pipeline folder, in float16.

    `folder` must be absent or empty, and appears only when complete. Raises DitflowError if it is in the way.
    """
    with _new_folder(Path(folder)) as unfinished:
        write_tokenizer(unfinished / "tokenizer")
        tokenizer = T5Tokenizer.from_pretrained(unfinished / "tokenizer")
        halves = {part: network.half() for part, network in networks.items()}
        pipeline = kind(tokenizer=tokenizer, scheduler=scheduler, **halves)
        for part in (*networks, "scheduler"):
            getattr(pipeline, part).save_pretrained(unfinished / part)
        pipeline.save_config(unfinished)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to that becomes `folder` at the end."""
    in_the_way = DitflowError(f"{folder} exists and is not an empty folder: remove it or give another name")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise in_the_way
    try:
        with whole_or_absent(folder) as unfinished:
            unfinished.mkdir()
            yield unfinished
    except OSError:
        if folder.exists():  # another process has made it meanwhile
            raise in_the_way from None
        raise


def write_tokenizer(folder: Path) -> None:
    """Write a T5 tokenizer as a sentencepiece model; a tokenizer.json would take precedence over it."""
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


def random_text_encoder() -> T5EncoderModel:
    """The text encoder of the small models: random, untrained; float32 numbers that are exact in float16."""
    return randomised(T5EncoderModel, T5Config)


@torch.no_grad()
def randomised(kind: type[Encoder], config: type[PretrainedConfig]) -> Encoder:
    """A text encoder of this class; see `random_text_encoder`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed the GPUs
        text_encoder = kind(config(vocab_size=vocabulary_size(), **TEXT_ENCODER))
        for name, weights in text_encoder.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                nn.init.normal_(weights, std=3.0)  # strong enough for word order to matter
    return text_encoder.half().float()
