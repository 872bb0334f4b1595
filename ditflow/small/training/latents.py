"""The training data of the transformers: clips, encoded once, with their captions."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Tokenizer

from ditflow.errors import DitflowError
from ditflow.files import whole_or_absent
from ditflow.models.cogvideox.text import T5TextEncoder
from ditflow.models.t5.prompts import tokenise
from ditflow.models.wan.frames import encoded_frames
from ditflow.models.wan.text import UMT5TextEncoder
from ditflow.small.pipeline import TEXT_LENGTH, random_text_encoder, write_tokenizer
from ditflow.small.training.autoencoder import convolve_fast, to_pixels, trained_autoencoder
from ditflow.small.training.drawing import drawn
from ditflow.small.training.loop import progress_of
from ditflow.small.training.split import TRAINING_SEEDS, training_clips
from ditflow.small.training.wan_autoencoder import trained_wan_autoencoder
from ditflow.small.wan_pipeline import random_umt5

logger = logging.getLogger(__name__)

TOGETHER = 32  # clips encoded at once


@dataclass(frozen=True)
class Source:
    """What a family's training data are made with."""

    stage: str  # of the autoencoder
    file: str  # of the data, beside the checkpoints
    clips: int  # the first ones of TRAINING_SEEDS
    autoencoder: Callable[[Path], nn.Module]
    encoded_frames: Callable[[int], int]  # for a clip of this many frames
    encode: Callable[[Tensor], Tensor]  # token ids -> text
    each_channel: bool  # whether every channel is given a mean of 0 and a variance of 1, or all together


COGVIDEOX = Source(
    "vae",
    "latents.safetensors",
    len(TRAINING_SEEDS),
    trained_autoencoder,
    encoded_frames=lambda frames: frames,
    encode=lambda tokens: T5TextEncoder(random_text_encoder()).encode(tokens),
    each_channel=False,
)
WAN = Source(
    "wan-vae",
    "wan-latents.safetensors",
    4_000,
    trained_wan_autoencoder,
    encoded_frames,
    encode=lambda tokens: UMT5TextEncoder(random_umt5()).encode(tokens),
    each_channel=True,
)


class Material(NamedTuple):
    latents: Tensor  # [clips, frames, channels, height, width] float16, of unit variance
    captions: Tensor  # [clips] indices into `texts`
    texts: Tensor  # [texts, text tokens, text channels]: the empty text, then every caption
    scale: Tensor  # [] or [channels]: factor applied to the autoencoder's latents less the mean
    step: Tensor  # [] the autoencoder's step at the time
    mean: Tensor = torch.zeros(())  # [] or [channels]


def material(checkpoints: Path, device: torch.device, source: Source = COGVIDEOX) -> Material:
    """The training data on the device; the first call encodes it and writes it beside the checkpoints.

    Raises DitflowError if the autoencoder has no checkpoint, or has been trained further since.
    """
    trained = checkpoints / f"{source.stage}.safetensors"
    if not trained.is_file():
        raise DitflowError(f"no {trained}: train it with `python -m ditflow.small.train {source.stage}`")
    path = checkpoints / source.file
    if not path.is_file():
        logger.info("encoding the clips")
        with whole_or_absent(path) as unfinished:
            save_file(_encode_clips(checkpoints, device, source)._asdict(), unfinished)
    found = Material(**load_file(path, str(device)))
    if int(found.step) != (now := progress_of(trained)["step"]):
        raise DitflowError(
            f"{path.name} was made at step {int(found.step)} of the autoencoder, which is now at "
            f"{now}: to continue, remove all but {trained.name} from {checkpoints}"
        )
    return found


@torch.no_grad()
def _encode_clips(checkpoints: Path, device: torch.device, source: Source) -> Material:
    vae = source.autoencoder(checkpoints).to(device)
    convolve_fast(vae)
    texts, captions, latents = {"": 0}, [], []
    seeds = TRAINING_SEEDS[: source.clips]
    groups = [seeds[first : first + TOGETHER] for first in range(0, len(seeds), TOGETHER)]
    for written, clips in drawn(lambda number: _some_clips(groups[number]), range(len(groups)), device):
        captions += [texts.setdefault(caption, len(texts)) for caption in written]
        missing = source.encoded_frames(clips.shape[1]) - clips.shape[1]
        pixels = to_pixels(
            torch.cat([clips, clips[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1).to(device)
        )
        with torch.autocast(device.type, torch.bfloat16):
            latents.append(vae.encode(pixels).latent_dist.mode().float().cpu())
    encoded = rearrange(torch.cat(latents), "n c f h w -> n f h w c")
    if source.each_channel:
        std, mean = torch.std_mean(encoded.flatten(0, -2), dim=0)
    else:
        std, mean = encoded.std(), torch.zeros(())
    encoded = rearrange(((encoded - mean) / std).half(), "n f h w c -> n f c h w").contiguous()
    with tempfile.TemporaryDirectory() as scratch:
        write_tokenizer(Path(scratch) / "tokenizer")
        tokenizer = T5Tokenizer.from_pretrained(Path(scratch) / "tokenizer")
    words = source.encode(tokenise(tokenizer, list(texts), TEXT_LENGTH))
    step = torch.tensor(progress_of(checkpoints / f"{source.stage}.safetensors")["step"])
    return Material(encoded, torch.tensor(captions), words, 1 / std, step, mean)


def _some_clips(seeds: range) -> tuple[list[str], Tensor]:
    """Captions and clips [clips, frames, height, width, 3] uint8 of these seeds."""
    clips = list(training_clips(seeds))
    return [clip.caption for clip in clips], torch.from_numpy(np.stack([clip.frames for clip in clips]))
