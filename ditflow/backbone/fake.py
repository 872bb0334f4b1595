"""Models of the real size without weights, to measure the real code on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import CogVideoXTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from ditflow.backbone.cogvideox import CogVideoX
from ditflow.backbone.runner import Inputs
from ditflow.backbone.vae import latent_frames
from ditflow.settings import Settings, model_family, shipped


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors that have shapes, types and storages, but no memory and no values."""
    with FakeTensorMode():
        yield


def fake_backbone(settings: Settings) -> CogVideoX:
    """The settings' model; call it among fake tensors."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, settings.dtype))  # fake modules cannot be converted
    try:
        shape = shipped(f"models/{model_family(settings.model)}.yaml")["transformer"]
        return CogVideoX(CogVideoXTransformer3DModel(**shape))
    finally:
        torch.set_default_dtype(default)


def fake_inputs(settings: Settings, backbone: CogVideoX) -> Inputs:
    """One forward's inputs at the settings' size and frame count."""
    config = backbone.config
    frames = latent_frames(settings.frames)
    latents = torch.empty(1, frames, config.in_channels, settings.size.height // 8, settings.size.width // 8)
    prompt = torch.empty(1, config.max_text_seq_length, config.text_embed_dim, dtype=backbone.dtype)
    tokens = frames * latents.shape[3] * latents.shape[4] // config.patch_size**2
    if backbone.rotary:
        embedding = torch.empty(2, 2, tokens, config.attention_head_dim)
    else:
        embedding = torch.empty(1, tokens, config.num_attention_heads * config.attention_head_dim)
    return Inputs(latents, prompt, torch.empty(1, dtype=torch.int64), embedding)
