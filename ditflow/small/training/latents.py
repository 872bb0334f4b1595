"""The training data of the transformers: clips, encoded once, with their captions."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Tokenizer

from ditflow.errors import DitflowError
from ditflow.files import whole_or_absent
from ditflow.models.cogvideox.text import T5TextEncoder
from ditflow.models.t5.prompts import tokenise
from ditflow.small.pipeline import TEXT_LENGTH, random_text_encoder, write_tokenizer
from ditflow.small.training.autoencoder import convolve_fast, to_pixels, trained_autoencoder
from ditflow.small.training.drawing import drawn
from ditflow.small.training.loop import progress_of
from ditflow.small.training.split import TRAINING_SEEDS, training_clips

logger = logging.getLogger(__name__)

TOGETHER = 32  # clips encoded at once


class Material(NamedTuple):
    latents: Tensor  # [clips, frames, channels, height, width] float16, of unit variance
    captions: Tensor  # [clips] indices into `texts`
    texts: Tensor  # [texts, text tokens, text channels]: the empty text, then every caption
    scale: Tensor  # [] factor applied to the autoencoder's latents
    step: Tensor  # [] the autoencoder's step at the time


def material(checkpoints: Path, device: torch.device) -> Material:
    """The training data on the device; the first call encodes it and writes it beside the checkpoints.

    Raises DitflowError if the autoencoder has no checkpoint, or has been trained further since.
    """
    trained = checkpoints / "vae.safetensors"
    if not trained.is_file():
        raise DitflowError(f"no {trained}: train it with `python -m ditflow.small.train vae`")
    path = checkpoints / "latents.safetensors"
    if not path.is_file():
        logger.info("encoding the clips")
        with whole_or_absent(path) as unfinished:
            save_file(_encode_clips(checkpoints, device)._asdict(), unfinished)
    found = Material(**load_file(path, str(device)))
    if int(found.step) != (now := progress_of(trained)["step"]):
        raise DitflowError(
            f"{path.name} was made at step {int(found.step)} of the autoencoder, which is now at "
            f"{now}: to continue, remove all but vae.safetensors from {checkpoints}"
        )
    return found


@torch.no_grad()
def _encode_clips(checkpoints: Path, device: torch.device) -> Material:
    vae = trained_autoencoder(checkpoints).to(device)
    convolve_fast(vae)
    texts, captions, latents = {"": 0}, [], []
    for written, clips in drawn(_some_clips, range(math.ceil(len(TRAINING_SEEDS) / TOGETHER)), device):
        captions += [texts.setdefault(caption, len(texts)) for caption in written]
        with torch.autocast(device.type, torch.bfloat16):
            latents.append(vae.encode(to_pixels(clips.to(device))).latent_dist.mode().float().cpu())
    encoded = rearrange(torch.cat(latents), "n c f h w -> n f c h w").contiguous()
    scale = 1 / encoded.std()
    write_tokenizer(checkpoints / "tokenizer")
    tokenizer = T5Tokenizer.from_pretrained(checkpoints / "tokenizer")
    tokens = tokenise(tokenizer, list(texts), TEXT_LENGTH)
    words = T5TextEncoder(random_text_encoder()).encode(tokens)
    step = torch.tensor(progress_of(checkpoints / "vae.safetensors")["step"])
    return Material((encoded * scale).half(), torch.tensor(captions), words, scale, step)


def _some_clips(number: int) -> tuple[list[str], Tensor]:
    """Captions and clips [clips, frames, height, width, 3] uint8 of a group of consecutive seeds."""
    seeds = TRAINING_SEEDS[TOGETHER * number : TOGETHER * (number + 1)]
    clips = list(training_clips(seeds))
    return [clip.caption for clip in clips], torch.from_numpy(np.stack([clip.frames for clip in clips]))
