"""A small pipeline with random weights in which every weight matters, and quick transfers with it.

Gates are open, so that a gradient reaches the latents from every block. Attention is neither uniform nor a
copy of one token. Two prompts give velocities that differ by some per cent. No norm or bias is the identity,
so that leaving one out changes the result. Convolutions are partly a blur, so that the latents show where a
shape is.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from safetensors.torch import load_file
from torch import nn

from ditflow import Settings
from ditflow.small.pipeline import TRANSFORMER, VAE, random_text_encoder, write_pipeline

# found by trial: they open the gates, let attention pick out a few tokens (some of them text, so that prompts
# matter), and make a clip's latents vary about as much as noise
GAINS = {
    "norm1.linear.weight": 2.0,
    "norm2.linear.weight": 2.0,
    "norm_q.weight": 1.7,
    "norm_k.weight": 1.7,
    "encoder.conv_out.conv.weight": 2.6,
}
NARROW_VAE = VAE | {"block_out_channels": (8, 16, 16)}  # decodes in less than half the time
SEED = 26  # with this seed the autoencoder preserves the position of a moving shape
BLUR_SHARE = 0.6  # of blur in a 3 x 3 (x 3) convolution, to preserve positions; the rest is noise


def build_pipeline(folder: Path, *, seed: int = SEED, positional: str = "rope") -> None:
    """Write a pipeline to `folder`, absent or empty; `positional` is "rope" (as 5B) or "sincos" (as 2B)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        transformer = CogVideoXTransformer3DModel(
            use_rotary_positional_embeddings=positional == "rope", **TRANSFORMER
        )
        vae = AutoencoderKLCogVideoX(**NARROW_VAE)
        _randomise(transformer)
        _randomise(vae)
    write_pipeline(folder, random_text_encoder(), transformer, vae)


def quick_settings(clip, model, **changes):
    """Settings of a transfer that takes about a second."""
    common = Settings(
        video=str(clip),
        prompt="a red circle on a blue background",
        negative_prompt="",
        model=str(model),
        dtype="float32",
        device="cpu",
        size="48x32",
        frames=10,
        steps=4,
        guided=0.5,
        optimisation_steps=2,
        learning_rate=[0.05, 0.02],
        guidance_blocks=[2],
        guidance_scale=2,
    )
    return replace(common, **changes)


def latents(run):
    """The latents that a run has saved."""
    return load_file(run.folder / "latents.safetensors")["latents"]


@torch.no_grad()
def _randomise(network: nn.Module) -> None:
    """Draw weights that keep a signal's variance, biases of about 0.1, and norms near the identity."""
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
    """Convolution weights [out, in, (3,) 3, 3] that mix channels at random and blur each in space."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = line[:, None] * line
    if len(shape) == 5:  # time is causal: the last tap is the frame itself
        kernel = torch.stack([torch.zeros(3, 3), torch.zeros(3, 3), kernel])
    return torch.randn(shape[:2] + (1,) * kernel.ndim) / math.sqrt(shape[1]) * kernel
