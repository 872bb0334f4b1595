"""All of a run between encoding and decoding: what guides it is prepared, and the loop is run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ditflow.backbone.runner import Runner
from ditflow.backbone.schedule import Schedule
from ditflow.backbone.text import Texts
from ditflow.embeddings import FILE, fingerprint, load_embeddings, saved_dtype
from ditflow.guidance.injection import Injection
from ditflow.guidance.prepare import prepare_guidance
from ditflow.sampling import Scale, Step, denoise
from ditflow.settings import Settings

logger = logging.getLogger(__name__)


@dataclass
class Denoised:
    """What the denoising phase leaves."""

    latents: Tensor  # [1, frames, channels, height, width]
    losses: list[list[float]]  # [guided steps][optimisation steps]
    skipped: int  # optimisation steps left out because float16 overflowed
    embeddings: list[Tensor] = field(default_factory=list)  # one a guided step, where they were optimised
    facts: dict[str, str] = field(default_factory=dict)  # what a run that uses the embeddings must share


def denoise_clip(
    settings: Settings,
    runner: Runner,
    scheduler: dict,  # the model's scheduler configuration
    texts: Texts,
    reference: Tensor,  # [1, frames, channels, height, width] the encoded clip
    watch: Callable[[Step], None],  # hears of every denoising step
) -> Denoised:
    """From seed to clean latents with the clip's motion."""
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    schedule = Schedule(settings.scheduler, scheduler, settings.steps, reference.device, generator)
    noise = schedule.initial_noise(reference.shape)
    grid = runner.backbone.grid(reference)
    own = runner.backbone.embedding(grid)
    facts = fingerprint(settings, schedule.timesteps.tolist(), runner.backbone.rotary)

    guidance = saved = None
    if settings.saved_embedding:
        saved = load_embeddings(Path(settings.saved_embedding), facts, settings.guided_steps, own)
    elif settings.guidance and settings.guided_steps:
        guidance = prepare_guidance(runner, settings, grid, reference, texts.source_prompt, own)
        if guidance.loss.still:
            logger.warning("the clip shows no motion in the guided blocks: there is nothing to transfer")
    keeps = guidance is not None and guidance.variable == "embedding"
    result = Denoised(noise, [], 0, facts=facts)
    if keeps:
        size = own.numel() * saved_dtype(settings).itemsize * settings.guided_steps
        logger.info("%s will take %.1f MB", FILE, size / 1e6)

    def on_step(step: Step) -> None:
        if step.losses:
            result.losses.append(step.losses)
        if keeps and step.index < settings.guided_steps:
            result.embeddings.append(step.embedding.to("cpu", saved_dtype(settings)))
        watch(step)

    result.latents = denoise(
        runner,
        schedule,
        noise,
        own,
        texts,
        Scale(settings.guidance_scale, settings.dynamic_scale),
        settings.guided_steps,
        guidance,
        Injection(settings.injection_blocks, reference, noise, own) if settings.injection else None,
        saved,
        on_step,
    )
    if guidance and guidance.scale.skipped:
        result.skipped = guidance.scale.skipped
        logger.warning("%d optimisation steps overflowed in float16 and were left out", result.skipped)
    return result
