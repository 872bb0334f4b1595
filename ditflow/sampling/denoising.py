"""All of a run between encoding and decoding: what guides it is prepared, and the loop is run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ditflow.guidance.injection import Injection
from ditflow.guidance.optimise import Guidance
from ditflow.guidance.targets import prepare_guidance
from ditflow.models.cogvideox.schedule import Schedule
from ditflow.models.cogvideox.text import Texts
from ditflow.models.protocols import Runner
from ditflow.run_folder.checkpoint import State
from ditflow.run_folder.embeddings import FILE, fingerprint, load_embeddings, saved_dtype
from ditflow.sampling.loop import Scale, Step, denoise
from ditflow.settings import Settings

logger = logging.getLogger(__name__)


@dataclass
class Denoised:
    """What the denoising phase leaves."""

    latents: Tensor  # [1, frames, channels, height, width]
    losses: list[list[float]]  # [guided steps][optimisation steps]
    skipped: int  # optimisation steps left out because float16 overflowed
    embeddings: list[Tensor]  # one a guided step, where they were optimised
    facts: dict[str, str]  # what a run that uses the embeddings must share; empty where there are none


class Denoising:
    """From seed to clean latents with the clip's motion. Where a step fails it can go on with another Runner.

    State: how far it has come; with another one put in its place it goes on from there.
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
        self.state = State(-1, self.noise, None, self.schedule.moment(), [], 0, [])
        self.guidance: Guidance | None = None

    @property
    def steps_done(self) -> int:
        return self.state.index + 1

    @property
    def result(self) -> Denoised:
        """What the steps done so far leave."""
        state, facts = self.state, {}
        if state.embeddings:
            rotary = state.embeddings[0].ndim == 4  # see `Inputs.embedding`
            facts = fingerprint(self.settings, self.schedule.timesteps, rotary)
        return Denoised(state.latents, state.losses, state.skipped, state.embeddings, facts)

    def run(self, runner: Runner) -> Denoised:
        """All steps that are not done yet."""
        settings, state, device = self.settings, self.state, self.reference.device
        own = runner.backbone.embedding(runner.backbone.grid(self.reference))
        saved = None
        if settings.saved_embedding:
            facts = fingerprint(settings, self.schedule.timesteps, runner.backbone.rotary)
            saved = load_embeddings(Path(settings.saved_embedding), facts, settings.guided_steps, own)
        elif settings.guidance and self.steps_done < settings.guided_steps:
            if self.guidance is None:
                self._prepare(runner, own)
            self.guidance.back_to(state.skipped)
        self.schedule.back_to(state.moment)
        embedding = own if state.embedding is None else state.embedding.to(own)
        denoise(
            runner,
            self.schedule,
            Step(state.index, state.latents.to(device), embedding, []),
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
        if skipped := self.state.skipped:
            logger.warning("%d optimisation steps overflowed in float16 and were left out", skipped)
        return self.result

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
        before, guided = self.state, step.index < self.settings.guided_steps
        keeps = guided and self._keeps
        kept = [step.embedding.to("cpu", saved_dtype(self.settings))] if keeps else []
        self.state = State(
            step.index,
            step.latents,
            step.embedding if keeps and step.index + 1 < self.settings.guided_steps else None,
            self.schedule.moment(),
            [*before.losses, step.losses] if step.losses else before.losses,
            self.guidance.skipped if guided and self.guidance else before.skipped,
            [*before.embeddings, *kept],
        )
        self.watch(step)
