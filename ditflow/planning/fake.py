"""Models of the real size without weights, to measure the real code on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import T5Config, T5EncoderModel

from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.cogvideox.vae import latent_frames
from ditflow.models.gguf_file import load_gguf
from ditflow.models.loading import ModelFolder, find_folder
from ditflow.models.protocols import Inputs
from ditflow.models.storage import store_weights
from ditflow.settings import Settings
from ditflow.settings.settings import MODELS, shipped


def fake_tensors() -> FakeTensorMode:
    """While it is entered, tensors have shapes, types and storages, but no memory and no values."""
    return FakeTensorMode()


def fake_backbone(settings: Settings) -> CogVideoX:
    """The settings' model; call it among fake tensors, as all that follows."""
    config = _config(settings, "transformer")
    if settings.weights.endswith(".gguf"):
        return CogVideoX(load_gguf(Path(settings.weights), config, getattr(torch, settings.dtype)))
    with _made_in(settings.dtype):
        transformer = CogVideoXTransformer3DModel.from_config(config)
    store_weights(transformer, settings.weights, torch.device("cpu"))
    return CogVideoX(transformer)


def fake_text_encoder(settings: Settings) -> T5EncoderModel:
    """The settings' T5 encoder."""
    with _made_in(settings.dtype):
        encoder = T5EncoderModel(T5Config(**_config(settings, "text_encoder"))).eval()
    if settings.dtype == "float16":
        for name, layer in encoder.named_modules():
            if name.endswith(".wo"):  # it overflows in float16, so transformers loads it in float32
                layer.weight = nn.Parameter(layer.weight.float())
    return encoder.requires_grad_(False)


def fake_vae(settings: Settings) -> AutoencoderKLCogVideoX:
    """The settings' autoencoder."""
    with _made_in(settings.dtype):
        vae = AutoencoderKLCogVideoX.from_config(_config(settings, "vae"))
    return vae.requires_grad_(False).eval()


def fake_pixels(settings: Settings) -> torch.Tensor:
    """A clip at the settings' size and frame count, uint8 [frames, height, width, 3]."""
    return torch.empty(settings.frames, settings.size.height, settings.size.width, 3, dtype=torch.uint8)


def fake_inputs(settings: Settings, backbone: CogVideoX) -> Inputs:
    """One forward's inputs at the settings' size and frame count."""
    config = backbone.config
    frames = latent_frames(settings.frames)
    pixels = 2 ** (len(_config(settings, "vae")["block_out_channels"]) - 1)  # a side of one latent
    height, width = settings.size.height // pixels, settings.size.width // pixels
    latents = torch.empty(1, frames, config.in_channels, height, width)
    prompt = torch.empty(1, config.max_text_seq_length, config.text_embed_dim, dtype=backbone.dtype)
    tokens = frames * height * width // config.patch_size**2
    if backbone.rotary:
        embedding = torch.empty(2, 2, tokens, config.attention_head_dim)
    else:
        embedding = torch.empty(1, tokens, config.num_attention_heads * config.attention_head_dim)
    return Inputs(latents, prompt, torch.empty(1, dtype=torch.int64), embedding)


@contextmanager
def _made_in(dtype: str) -> Iterator[None]:
    """Modules are made in a precision: fake ones cannot be converted."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def _config(settings: Settings, part: str) -> dict[str, Any]:
    """A part's shape: what is shipped of 2B and 5B, else from the model's own files."""
    known = shipped(f"models/{settings.model}.yaml") if settings.model in MODELS else {}
    if part in known:
        return known[part]
    folder = find_folder(settings.model, download=False)
    return ModelFolder(str(folder), settings.dtype, torch.device("cpu")).config(part)
