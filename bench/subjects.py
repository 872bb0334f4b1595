"""The models that are measured, with their inputs. Only this module of `bench` builds them.

Weights are random. CPU runs take a middling rotary model in float32, GPU runs published models at their real
size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import CPU
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import flow_targets
from ditflow.memory.plain import PlainRunner
from ditflow.models.cogvideox.transformer import Pieces
from ditflow.models.cogvideox.vae import ENCODE_TILE, CogVideoXAutoencoder
from ditflow.models.compute import compute_in
from ditflow.models.families import family_of, known_model
from ditflow.models.precision import as_loaded
from ditflow.models.protocols import Capture, Grid, Inputs, Runner, Texts, Transformer
from ditflow.sampling.denoising import Denoised, Denoising
from ditflow.settings import Settings
from ditflow.small.pipeline import VAE

FAMILY = family_of("5b")
SHAPE = {"num_attention_heads": 8, "attention_head_dim": 64, "time_embed_dim": 128, "text_embed_dim": 64}
CHANNELS, PATCH = 16, 2  # of latents; latent pixels along a side of a patch
SCHEDULER = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "clip_sample": False,
}
# for graph breaks: the real models' kinds of layers, small
GRAPH_SHAPE = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 16}
GRAPH_SHAPE |= {"text_embed_dim": 12, "max_text_seq_length": 10}
GRAPH_LATENTS = 1, 3, CHANNELS, 8, 12
TILE = ENCODE_TILE  # also diffusers' default for CogVideoX
FRAMES, HEIGHT, WIDTH = 9, 32, 384  # two tiles

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A run of the middling model on a CPU."""

    layers: int
    guidance_block: int
    grid: Grid
    steps: int
    optimisation_steps: int
    speed: str = "exact"

    @property
    def settings(self) -> Settings:
        steps = {"steps": self.steps, "optimisation_steps": self.optimisation_steps, "speed": self.speed}
        blocks = {"guidance_blocks": (self.guidance_block,), "injection_blocks": (0,)}
        return Settings(model="5b", dtype="float32", device="cpu", **steps, **blocks)

    @property
    def latents(self) -> Shape:
        frames, height, width = self.grid
        return 1, frames, CHANNELS, PATCH * height, PATCH * width

    def transformer(self) -> Transformer:
        """The same random weights each time."""
        torch.manual_seed(0)
        config = shipped_config("5b") | SHAPE | {"num_layers": self.layers}
        transformer = FAMILY.transformer(random_network("5b", config), "sdpa", False)
        compute_in(self.settings.compute, transformer.blocks, FAMILY.packed_parts, CPU)
        return transformer

    def inputs(self) -> tuple[Inputs, Inputs]:
        """Two sets, of different latents and prompts."""
        transformer = self.transformer()
        return random_inputs(transformer, self.latents, FAMILY.prompt_shape(transformer.network.config), CPU)

    def run(self) -> Callable[[Runner], Denoised]:
        """A run from the clip's latents to the video's, without text encoder and autoencoder."""
        settings, draw = self.settings, torch.Generator().manual_seed(1)
        prompt = FAMILY.prompt_shape(self.transformer().network.config)
        texts = Texts(*torch.randn(3, 1, *prompt, generator=draw))
        clip = torch.randn(self.latents, generator=draw)

        def run(runner: Runner) -> Denoised:
            noise = torch.Generator().manual_seed(settings.seed)
            schedule = FAMILY.schedule(
                settings.scheduler, SCHEDULER, settings.steps, settings.size, CPU, noise
            )
            return Denoising(settings, schedule, texts, clip, lambda step: None).run(runner)

        return run


FULL = Case(layers=12, guidance_block=6, grid=Grid(6, 15, 22), steps=20, optimisation_steps=5)
QUICK = Case(layers=4, guidance_block=2, grid=Grid(2, 6, 8), steps=2, optimisation_steps=2)
WARMUP = Case(layers=2, guidance_block=1, grid=Grid(2, 2, 3), steps=2, optimisation_steps=1)


def shipped_config(model: str) -> dict[str, Any]:
    """The transformer's configuration of a published model."""
    return known_model(model)["transformer"]


def random_network(
    model: str,  # of the family
    config: Mapping[str, Any],
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A transformer with the weights its library's layers start from, in the precisions of a loaded one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return as_loaded(family_of(model).network("transformer")(**config))
    finally:
        torch.set_default_dtype(before)


def random_inputs(
    transformer: Transformer, latents: Shape, prompt: Shape, device: torch.device
) -> tuple[Inputs, Inputs]:
    """Two sets, of different latents [1, frames, channels, height, width] and prompts [tokens, channels]."""
    draw = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    noise, prompts = numbers(2, *latents), numbers(2, 1, *prompt)
    timestep = torch.full((1,), 900, dtype=transformer.timestep_dtype, device=device)
    embedding = transformer.embedding(transformer.grid(noise[0]))
    first, second = (Inputs(*each, timestep, embedding) for each in zip(noise, prompts, strict=True))
    return first, second


def compiled_functions(model: str) -> dict[str, tuple[Callable, tuple]]:
    """What torch.compile is given of a model, and its whole guided forward to the loss; with arguments."""
    transformer = FAMILY.transformer(
        random_network(model, shipped_config(model) | GRAPH_SHAPE), "sdpa", False
    )
    prompt = FAMILY.prompt_shape(transformer.network.config)
    inputs, _ = random_inputs(transformer, GRAPH_LATENTS, prompt, CPU)
    runner, capture = PlainRunner(transformer), Capture("query_key", (1,))
    grid = transformer.grid(inputs.latents)
    settings = Settings(model=model)
    targets = flow_targets(runner.features(inputs, {}, capture), grid, settings)
    loss = FlowLoss(targets, grid, settings)

    def guided(latents: Tensor) -> Tensor:
        return loss(1, runner.read(replace(inputs, latents=latents), {}, capture)[1])

    block, (carried, shared) = transformer.blocks[0], transformer.embed(inputs)
    attention = transformer.prepare(0, carried, shared)
    arguments = {
        "prepare": (block, carried, shared),
        "add_attention": (block, carried, attention.gates, transformer.attend(attention)),
        "feed_forward": (block, carried, shared),
        "hidden_layer": (block, carried[0].requires_grad_(), shared.time, 0),
    }
    found = {name: (getattr(Pieces(), name), given) for name, given in arguments.items()}
    return found | {"guided": (guided, (inputs.latents.requires_grad_(),))}


def small_autoencoder() -> CogVideoXAutoencoder:
    """The small model's, with the same random weights each time."""
    torch.manual_seed(0)
    return FAMILY.autoencoder(FAMILY.network("vae")(**VAE))


def random_pixels() -> Tensor:
    """uint8 [frames, height, width, 3]"""
    draw = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (FRAMES, HEIGHT, WIDTH, 3), generator=draw, dtype=torch.uint8)


def random_latents() -> Tensor:
    """[1, frames, channels, height, width]"""
    shape = FAMILY.latent_shape(FRAMES, (WIDTH, HEIGHT), VAE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def encoding(pixels: Tensor) -> Callable[[], Tensor]:
    return partial(small_autoencoder().encode, pixels)


def decoding(latents: Tensor) -> Callable[[], Tensor]:
    return partial(small_autoencoder().decode, latents, FRAMES, TILE)
