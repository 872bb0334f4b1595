"""Contests of a run's pieces: ours is what a run on a CPU does, the rivals are diffusers' own ways.

A random rotary model of 8 heads x 64 in float32 (`bench.subjects`) and the small model's autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from bench.rivals import ReleasedWay
from bench.subjects import QUICK, RIVAL, SIDES, Case
from bench.timed.contest import OURS, Call, Contest
from bench.whole_run import SCHEDULER
from ditflow.guidance.losses import FlowLoss
from ditflow.models.cogvideox import vae as autoencoder
from ditflow.models.cogvideox.text import Texts
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.protocols import Grid, Inputs, Runner, Until
from ditflow.sampling.denoising import Denoising
from ditflow.small.pipeline import VAE
from ditflow_kernels.backends import FASTEST

CASE = Case(layers=6, guidance_block=3, grid=Grid(3, 8, 12), steps=5, optimisation_steps=2)
OURS_IS = "plain"
WITH_OUR_LOSS = "released way with our loss"
RUN = replace(QUICK, steps=5)
FRAMES, HEIGHT, WIDTH = 9, 32, 384  # two tiles
SAME_TILES = autoencoder.ENCODE_TILE  # what CogVideoX has by default, too


def pieces() -> list[Contest]:
    pixels = f"the small autoencoder, {FRAMES} frames of {WIDTH}x{HEIGHT}, float32"
    return [
        Contest("guided step", f"{size_of(CASE)}, one update", guided_step),
        Contest("denoising step", f"{size_of(CASE)}, two prompts", denoising_step),
        Contest("whole run", f"{size_of(RUN)}, {RUN.steps} steps, from latents to latents", whole_run),
        Contest("encode", pixels, encode),
        Contest("decode", pixels, decode),
    ]


def size_of(case: Case) -> str:
    grid = " x ".join(map(str, case.grid))
    return f"{case.layers} blocks of 8 heads x 64, float32, {grid} patches"


def runners() -> dict[str, tuple[Callable[[CogVideoX], Runner], str]]:
    """Of each side: its Runner, and the kernels' backend while it computes."""
    ways = SIDES | {WITH_OUR_LOSS: (ReleasedWay, "chunked")}
    return {OURS if name == OURS_IS else name: way for name, way in ways.items()}


def guided_step(case: Case = CASE) -> Mapping[str, Call]:
    """One update of the latents, the clip's flow and the injected keys and values being there."""
    inputs, clip = model_inputs(case)

    def update(runner: Runner) -> Call:
        settings = case.settings
        target = Until("query_key", settings.guidance_blocks)
        loss = FlowLoss(runner.features(clip, {}, target), case.grid, settings)
        injected = runner.features(clip, {}, Until("key_value", settings.injection_blocks))
        return lambda: runner.gradient(loss, "latents", inputs, injected, target, 1.0)

    return {name: prepared(way, case, update) for name, way in runners().items()}


def denoising_step(case: Case = CASE) -> Mapping[str, Call]:
    """The model's predictions with and without the prompt."""
    inputs, other = model_inputs(case)
    found = {
        name: prepared(way, case, lambda runner: partial(runner.forward, [inputs, other], {}))
        for name, way in runners().items()
        if name in (OURS, RIVAL)
    }
    return found | {"diffusers, both in a batch": in_a_batch(case.backbone(), inputs, other)}


def in_a_batch(backbone: CogVideoX, inputs: Inputs, other: Inputs) -> Call:
    """As diffusers' own pipeline does it."""
    latents, prompts = (
        torch.cat([getattr(inputs, name), getattr(other, name)]) for name in ("latents", "prompt")
    )

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        timesteps = inputs.timestep.expand(2)
        rope = tuple(inputs.embedding[0])  # the queries' and the keys' are the same
        found = backbone.transformer(latents, prompts, timesteps, image_rotary_emb=rope, return_dict=False)[0]
        return found.chunk(2)

    return call


def whole_run(case: Case = RUN) -> Mapping[str, Call]:
    inputs, clip = model_inputs(case)
    texts = Texts(inputs.prompt, clip.prompt, inputs.prompt)

    def run(runner: Runner) -> Call:
        return lambda: Denoising(case.settings, SCHEDULER, texts, clip.latents, lambda _: None).run(runner)

    return {
        name: prepared(way, case, run)
        for name, way in runners().items()
        if name in (OURS, RIVAL, "block by block")
    }


def prepared(
    way: tuple[Callable[[CogVideoX], Runner], str], case: Case, work: Callable[[Runner], Call]
) -> Call:
    """A side's work with a model of its own and its kernels."""
    kind, backend = way
    with patch.dict(FASTEST, cpu=backend):
        call = work(kind(case.backbone()))

    def with_its_kernels() -> Any:
        with patch.dict(FASTEST, cpu=backend):
            return call()

    return with_its_kernels


def model_inputs(case: Case) -> tuple[Inputs, Inputs]:
    """Two sets of random inputs that differ in latents and prompt."""
    draw = torch.Generator().manual_seed(1)
    embedding = case.backbone().embedding(case.grid)

    def one() -> Inputs:
        latents, prompt = (torch.randn(shape, generator=draw) for shape in (case.latents, case.prompt))
        return Inputs(latents, prompt, torch.tensor([900]), embedding)

    return one(), one()


def encode() -> Mapping[str, Call]:
    draw = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (FRAMES, HEIGHT, WIDTH, 3), generator=draw, dtype=torch.uint8)
    video = (pixels / 127.5 - 1).permute(3, 0, 1, 2)[None]  # [1, 3, frames, height, width]

    def theirs(vae: AutoencoderKLCogVideoX) -> Call:
        return torch.no_grad()(lambda: vae.encode(video).latent_dist.mode())

    return {OURS: partial(autoencoder.encode, autoencoder_of(SAME_TILES), pixels)} | diffusers_ways(theirs)


def decode() -> Mapping[str, Call]:
    draw = torch.Generator().manual_seed(3)
    side = 2 ** (len(VAE["block_out_channels"]) - 1)  # pixels of a latent
    shape = autoencoder.latent_frames(FRAMES), VAE["latent_channels"], HEIGHT // side, WIDTH // side
    latents = torch.randn(1, *shape, generator=draw)

    def theirs(vae: AutoencoderKLCogVideoX) -> Call:
        scaled = latents.transpose(1, 2) / vae.config.scaling_factor
        return torch.no_grad()(lambda: vae.decode(scaled).sample)

    ours = partial(autoencoder.decode, autoencoder_of(SAME_TILES), latents, FRAMES)
    return {OURS: ours} | diffusers_ways(theirs)


def diffusers_ways(theirs: Callable[[AutoencoderKLCogVideoX], Call]) -> dict[str, Call]:
    return {
        "diffusers, the same tiles": theirs(autoencoder_of(SAME_TILES)),
        "diffusers, whole frames": theirs(autoencoder_of("none")),
    }


def autoencoder_of(tile: str) -> AutoencoderKLCogVideoX:
    """The same random weights each time, at work in tiles of a size."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(**VAE).requires_grad_(False).eval()
    autoencoder.use_tile(vae, tile)
    return vae
