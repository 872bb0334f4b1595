"""The stages of the autoencoder: encode made clips to latents and decode them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor, nn

from ditflow.small.clips import made_clip
from ditflow.small.pipeline import COMPRESSION, FRAMES, HEIGHT, LATENT_CHANNELS, VAE, WIDTH
from ditflow.small.training.loop import Training, adam, averaged
from ditflow.small.training.split import TRAINING_SEEDS

RATE = 1e-3
# each step takes one of these at random: crops around the shape, the hard part, or whole pictures; 16 frames,
# because the autoencoder works in groups of eight and the first group has no predecessor
BATCHES = (  # clips, frames, width, height
    (8, 16, 48, 48),
    (3, 16, 96, 64),
)
ASIDE = 8  # pixels: how far the shape may be from the middle of a crop
MOVES = 0.2  # of -1 ... 1: a pixel that changes more is on the shape's path
MOVING_WEIGHT = 4.0  # extra weight of errors on the shape's path, as few pixels are on it
# weights of the four video frames of the first latent frame, and of a later one: the first four come out
# alike, as nothing precedes them; of the later four, the last is the hardest
FIRST_WEIGHTS, LATER_WEIGHTS = (0.25, 0.25, 0.25, 0.25), (1.0, 1.0, 1.0, 4.0)
LATENT_NOISE = 0.1  # added in the decoder's stage, as generated latents are not exact; latents are about 1
LOG_VARIANCE = -4.0  # initial log variance of the latents
DIVERGENCE_WEIGHT, SQUARE_WEIGHT, EDGE_WEIGHT = 2e-3, 2.0, 0.5
ACCELERATION_WEIGHT = 3.0  # of the error's second difference in time, which makes smooth paths jitter


def autoencoder_training(checkpoints: Path, device: torch.device) -> Training:
    """The training of the autoencoder on parts of clips."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vae = AutoencoderKLCogVideoX(**VAE)
    # by default the noise would be as large as the latents, and the decoder would learn to ignore both
    nn.init.constant_(vae.encoder.conv_out.conv.bias[LATENT_CHANNELS:], LOG_VARIANCE)
    convolve_fast(vae.to(device))

    def loss(generator: torch.Generator, clips: Tensor) -> Tensor:
        pixels = to_pixels(clips)
        _, decoded, divergence = encoded_and_decoded(vae, pixels, generator)
        return difference(decoded, pixels, _frame_weights(pixels)) + DIVERGENCE_WEIGHT * divergence

    return Training(vae, [optimiser(vae)], loss, checkpoints / "vae.safetensors", _draw)


def decoder_training(checkpoints: Path, device: torch.device) -> Training:
    """The training of the decoder alone, which leaves the latents and the transformers valid."""
    vae = AutoencoderKLCogVideoX(**VAE)
    vae.load_state_dict(averaged(checkpoints / "vae.safetensors"))
    convolve_fast(vae.to(device))

    def loss(generator: torch.Generator, clips: Tensor) -> Tensor:
        pixels = to_pixels(clips)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mode()
            noise = torch.randn(latents.shape, generator=generator, device=device)
            decoded = vae.decode(latents + LATENT_NOISE * noise).sample.float()
        return difference(decoded, pixels, _frame_weights(pixels))

    return Training(vae.decoder, [optimiser(vae.decoder)], loss, checkpoints / "decoder.safetensors", _draw)


def trained_autoencoder(checkpoints: Path) -> AutoencoderKLCogVideoX:
    """The trained autoencoder, float32."""
    vae = AutoencoderKLCogVideoX(**VAE)
    vae.load_state_dict(averaged(checkpoints / "vae.safetensors"))
    if (alone := checkpoints / "decoder.safetensors").is_file():
        vae.decoder.load_state_dict(averaged(alone))
    return vae.eval()


def optimiser(network: nn.Module) -> torch.optim.Optimizer:
    return adam(network.parameters(), RATE)


def _frame_weights(pixels: Tensor) -> tuple[float, ...]:
    later = pixels.shape[2] // COMPRESSION - 1
    return FIRST_WEIGHTS + later * LATER_WEIGHTS


def encoded_and_decoded(
    vae: nn.Module, pixels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The means of the latents, the pixels decoded from a sample, and the divergence from unit noise []."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        found = vae.encode(pixels).latent_dist
        noise = torch.randn(found.mean.shape, generator=generator, device=pixels.device)
        decoded = vae.decode(found.mean + found.std * noise).sample.float()
    divergence = (found.mean.float().square() + found.var.float() - 1 - found.logvar.float()).mean() / 2
    return found.mean.float(), decoded, divergence


def difference(decoded: Tensor, pixels: Tensor, weights: Sequence[float]) -> Tensor:
    """The reconstruction loss, weighted towards what moves in `pixels`, with a weight for each frame."""
    moving = (pixels.amax(dim=2) - pixels.amin(dim=2)).amax(dim=1) > MOVES  # [clips, height, width]
    error = (decoded - pixels) * (1 + MOVING_WEIGHT * moving[:, None, None])
    # filled on the device: a CUDA graph cannot copy from the CPU
    frames = torch.cat([pixels.new_full((1, 1, 1), weight) for weight in weights])
    edges = sum(
        (frames[-change.shape[2] :] * change.abs()).mean()
        for change in (error.diff(dim=axis) for axis in (2, 3, 4))
    )
    square = (frames * error * (decoded - pixels)).mean()
    acceleration = (frames[2:] * error.diff(n=2, dim=2).abs()).mean()
    return (
        (frames * error.abs()).mean()
        + SQUARE_WEIGHT * square
        + EDGE_WEIGHT * edges
        + ACCELERATION_WEIGHT * acceleration
    )


def _draw(step: int) -> Tensor:
    return draw_clips(step, BATCHES)


def draw_clips(step: int, batches: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """The batch of a step: crops of training clips [clips, frames, height, width, 3] uint8.

    `batches` has the shapes to choose from: clips, frames, width, height.
    """
    generator = torch.Generator().manual_seed(step)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    clips, frames, width, height = batches[draw(len(batches))]
    crops = []
    for _ in range(clips):
        start = draw(FRAMES - frames + 1)
        clip = made_clip(TRAINING_SEEDS[draw(len(TRAINING_SEEDS))], painted=slice(start, start + frames))
        x, y = clip.centroids[start : start + frames].mean(axis=0)
        left = int(np.clip(x - width // 2 + draw(2 * ASIDE + 1) - ASIDE, 0, WIDTH - width))
        top = int(np.clip(y - height // 2 + draw(2 * ASIDE + 1) - ASIDE, 0, HEIGHT - height))
        crops.append(clip.frames[:, top : top + height, left : left + width])
    return torch.from_numpy(np.stack(crops))


def to_pixels(clips: Tensor) -> Tensor:
    """Clips [n, frames, height, width, 3] uint8 to [n, 3, frames, height, width] float32, -1 ... 1."""
    return rearrange(clips / 127.5 - 1, "n f h w c -> n c f h w")


def convolve_fast(vae: nn.Module) -> None:
    """Use channels-last memory in every convolution, which is several times faster in bfloat16 on a CPU."""

    def reorder(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(memory_format=torch.channels_last_3d), *inputs[1:])

    for layer in vae.modules():
        if isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
            layer.register_forward_pre_hook(reorder)
