"""The models that are measured, with their inputs. Only this module of `bench` builds them.

Weights are random. CPU runs take a middling rotary model in float32, GPU runs 2B and 5B at their real size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor

from bench.harness import CPU
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.plain import PlainRunner
from ditflow.models.cogvideox import vae as autoencoder
from ditflow.models.cogvideox.text import Texts
from ditflow.models.cogvideox.transformer import CogVideoX, Pieces
from ditflow.models.protocols import Grid, Inputs, Runner, Until
from ditflow.sampling.denoising import Denoised, Denoising
from ditflow.settings import Settings
from ditflow.settings.settings import shipped
from ditflow.small.pipeline import VAE

SHAPE = {"num_attention_heads": 8, "attention_head_dim": 64, "time_embed_dim": 128, "text_embed_dim": 64}
CHANNELS, TEXT_TOKENS = 16, 226
SCHEDULER = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "clip_sample": False,
}
LATENT = 8  # pixels along a side of a latent of 2B and 5B
# for graph breaks: the real models' kinds of layers, small
GRAPH_SHAPE = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 16}
GRAPH_SHAPE |= {"text_embed_dim": 12, "max_text_seq_length": 10}
GRAPH_LATENTS = 3, 8, 12  # frames, height, width
TILE = autoencoder.ENCODE_TILE  # also diffusers' default for CogVideoX
FRAMES, HEIGHT, WIDTH = 9, 32, 384  # two tiles


@dataclass(frozen=True)
class Case:
    """A run of the middling model on a CPU."""

    layers: int
    guidance_block: int
    grid: Grid
    steps: int
    optimisation_steps: int

    @property
    def settings(self) -> Settings:
        steps = {"steps": self.steps, "optimisation_steps": self.optimisation_steps}
        blocks = {"guidance_blocks": (self.guidance_block,), "injection_blocks": (0,)}
        return Settings(model="5b", dtype="float32", device="cpu", **steps, **blocks)

    def backbone(self) -> CogVideoX:
        """The same random weights each time."""
        torch.manual_seed(0)
        shape = shipped_config("5b") | SHAPE | {"num_layers": self.layers}
        return CogVideoX(CogVideoXTransformer3DModel(**shape))

    def inputs(self) -> tuple[Inputs, Inputs]:
        """Two sets, of different latents and prompts."""
        frames, height, width = self.grid
        _, first, clip, negative = random_inputs(self.backbone(), (frames, 2 * height, 2 * width), CPU)
        return first, replace(first, latents=clip, prompt=negative)

    def run(self) -> Callable[[Runner], Denoised]:
        """A run from the clip's latents to the video's, without text encoder and autoencoder."""
        frames, height, width = self.grid
        draw = torch.Generator().manual_seed(1)
        texts = Texts(*torch.randn(3, 1, TEXT_TOKENS, SHAPE["text_embed_dim"], generator=draw))
        clip = torch.randn(1, frames, CHANNELS, 2 * height, 2 * width, generator=draw)
        return lambda runner: Denoising(self.settings, SCHEDULER, texts, clip, lambda step: None).run(runner)


FULL = Case(layers=12, guidance_block=6, grid=Grid(6, 15, 22), steps=20, optimisation_steps=5)
QUICK = Case(layers=4, guidance_block=2, grid=Grid(2, 6, 8), steps=2, optimisation_steps=2)
WARMUP = Case(layers=2, guidance_block=1, grid=Grid(2, 2, 3), steps=2, optimisation_steps=1)


def shipped_config(model: str) -> dict[str, Any]:
    return shipped(f"models/{model}.yaml")["transformer"]


def random_transformer(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Weights as the layers initialise themselves, made in their own precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return CogVideoXTransformer3DModel(**config)
    finally:
        torch.set_default_dtype(before)


def backbone_of(transformer: Any, attention: str, compiled: bool) -> CogVideoX:
    return CogVideoX(transformer, attention, compiled)


def latents_of(settings: Settings) -> tuple[int, int, int]:
    """Frames, height and width of the latents of a run."""
    return (
        autoencoder.latent_frames(settings.frames),
        settings.size.height // LATENT,
        settings.size.width // LATENT,
    )


def random_inputs(
    backbone: CogVideoX, latents: tuple[int, int, int], device: torch.device
) -> tuple[Grid, Inputs, Tensor, Tensor]:
    """Grid, inputs, latents of a clip and a negative prompt. `latents`: frames, height, width."""
    draw, config = torch.Generator(device).manual_seed(0), backbone.config

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    frames, height, width = latents
    noise, clip = numbers(2, 1, frames, config.in_channels, height, width)
    prompt, negative = numbers(2, 1, config.max_text_seq_length, config.text_embed_dim)
    grid, timestep = backbone.grid(noise), torch.full((1,), 900, device=device)
    return grid, Inputs(noise, prompt, timestep, backbone.embedding(grid)), clip, negative


def compiled_functions(model: str) -> dict[str, tuple[Callable, tuple]]:
    """What torch.compile is given of a model, and its whole guided forward to the loss; with arguments."""
    backbone = CogVideoX(CogVideoXTransformer3DModel.from_config(shipped_config(model) | GRAPH_SHAPE))
    grid, inputs, *_ = random_inputs(backbone, GRAPH_LATENTS, CPU)
    runner, until = PlainRunner(backbone), Until("query_key", (1,))
    loss = FlowLoss(runner.features(inputs, {}, until), grid, Settings(model=model))

    def guided(latents: Tensor) -> Tensor:
        return loss(1, runner.read(replace(inputs, latents=latents), {}, until)[1])

    block, stream = backbone.blocks[0], backbone.embed(inputs)
    attention = backbone.prepare(0, stream)
    arguments = {
        "prepare": (block, stream),
        "add_attention": (block, stream, attention, backbone.attention(attention)),
        "feed_forward": (block, stream),
        "hidden_layer": (block, stream.video.requires_grad_(), stream.time, 0),
    }
    found = {name: (getattr(Pieces(), name), given) for name, given in arguments.items()}
    return found | {"guided": (guided, (inputs.latents.requires_grad_(),))}


def small_autoencoder(tile: str = TILE) -> AutoencoderKLCogVideoX:
    """The small model's, with the same random weights each time, working in tiles of a size."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(**VAE).requires_grad_(False).eval()
    autoencoder.use_tile(vae, tile)
    return vae


def random_pixels() -> Tensor:
    """uint8 [frames, height, width, 3]"""
    draw = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (FRAMES, HEIGHT, WIDTH, 3), generator=draw, dtype=torch.uint8)


def random_latents() -> Tensor:
    """[1, frames, channels, height, width]"""
    side = 2 ** (len(VAE["block_out_channels"]) - 1)  # pixels
    shape = autoencoder.latent_frames(FRAMES), VAE["latent_channels"], HEIGHT // side, WIDTH // side
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))


def encoding(pixels: Tensor) -> Callable[[], Tensor]:
    return partial(autoencoder.encode, small_autoencoder(), pixels)


def decoding(latents: Tensor) -> Callable[[], Tensor]:
    return partial(autoencoder.decode, small_autoencoder(), latents, FRAMES)
