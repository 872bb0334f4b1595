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
from ditflow.guidance.optimise import Guidance
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


class Denoising:
    """From seed to clean latents with the clip's motion. Where a step fails it can go on with another Runner.

    State: the last step that was finished, and what has been gathered until then.
    """

    def __init__(
        self,
        settings: Settings,
        scheduler: dict,  # the model's scheduler configuration
        texts: Texts,
        reference: Tensor,  # [1, frames, channels, height, width] the encoded clip
        watch: Callable[[Step], None],  # hears of every denoising step
    ):
        self.settings, self.texts, self.reference, self.watch = settings, texts, reference, watch
        generator = torch.Generator("cpu").manual_seed(settings.seed)
        self.schedule = Schedule(settings.scheduler, scheduler, settings.steps, reference.device, generator)
        self.noise = self.schedule.initial_noise(reference.shape)
        self.moment = self.schedule.moment()
        self.last: Step | None = None
        self.guidance: Guidance | None = None
        self.result = Denoised(self.noise, [], 0)

    def run(self, runner: Runner) -> Denoised:
        """All steps that are not done yet."""
        settings, result = self.settings, self.result
        own = runner.backbone.embedding(runner.backbone.grid(self.reference))
        result.facts = fingerprint(settings, self.schedule.timesteps, runner.backbone.rotary)
        saved = None
        if settings.saved_embedding:
            saved = load_embeddings(Path(settings.saved_embedding), result.facts, settings.guided_steps, own)
        elif settings.guidance and settings.guided_steps and self.guidance is None:
            self._prepare(runner, own)
        self.schedule.back_to(self.moment)
        result.latents = denoise(
            runner,
            self.schedule,
            self.last or Step(-1, self.noise, own, []),
            own,
            self.texts,
            Scale(settings.guidance_scale, settings.dynamic_scale),
            settings.guided_steps,
            self.guidance,
            Injection(settings.injection_blocks, self.reference, self.noise, own)
            if settings.injection
            else None,
            saved,
            self._on_step,
        )
        if self.guidance and self.guidance.skipped:
            result.skipped = self.guidance.skipped
            logger.warning("%d optimisation steps overflowed in float16 and were left out", result.skipped)
        return result

    def _prepare(self, runner: Runner, own: Tensor) -> None:
        settings, grid = self.settings, runner.backbone.grid(self.reference)
        prompt = self.texts.source_prompt
        self.guidance = prepare_guidance(runner, settings, grid, self.reference, prompt, own)
        if self.guidance.loss.still:
            logger.warning("the clip shows no motion in the guided blocks: there is nothing to transfer")
        if self._keeps:
            size = own.numel() * saved_dtype(settings).itemsize * settings.guided_steps
            logger.info("%s will take %.1f MB", FILE, size / 1e6)

    @property
    def _keeps(self) -> bool:
        """Whether embeddings are optimised, and so kept."""
        return self.guidance is not None and self.guidance.variable == "embedding"

    def _on_step(self, step: Step) -> None:
        self.last, self.moment = step, self.schedule.moment()
        if step.losses:
            self.result.losses.append(step.losses)
        if self._keeps and step.index < self.settings.guided_steps:
            self.result.embeddings.append(step.embedding.to("cpu", saved_dtype(self.settings)))
        self.watch(step)
