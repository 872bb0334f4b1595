"""The phase between encoding and decoding: prepares guidance and runs the denoising loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.guidance.estimates import prepare_estimates
from ditflow.guidance.injection import Injection
from ditflow.guidance.optimise import OnUpdate
from ditflow.guidance.switched import AnyGuidance, SwitchedGuidance
from ditflow.guidance.targets import (
    NoisedClip,
    prepare_drawn_guidance,
    prepare_guidance,
    prepare_noised_guidance,
)
from ditflow.models.protocols import Runner, Schedule, Texts
from ditflow.motion.chosen import ChosenMotion
from ditflow.run_folder.checkpoint import State
from ditflow.run_folder.embeddings import FILE, saved_dtype
from ditflow.sampling.loop import Scale, Step, denoise
from ditflow.sampling.reuse import Reuse
from ditflow.settings import Settings

logger = logging.getLogger(__name__)


@dataclass
class Denoised:
    """The result of denoising."""

    latents: Tensor  # [1, frames, channels, height, width]
    losses: list[list[float]]  # [guided steps][gradients]
    skipped: int  # optimisation steps skipped because float16 overflowed
    embeddings: list[Tensor]  # one for each guided step, if embeddings were optimised
    steps: list[dict[str, Any]]  # what each step did, for run.json


class Denoising:
    """Denoises latents with the clip's motion. `run` can be called again after a failed step.

    Its state is that of the last finished step. It starts from `resume_from`, or from initial noise, alone
    or added to the clip.
    """

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,  # with a seeded generator that has drawn nothing yet
        texts: Texts,
        reference: Tensor | None,  # [1, frames, channels, height, width] the encoded clip, if there is one
        on_step: Callable[[Step], None],
        *,
        chosen: ChosenMotion | None = None,  # instead of the clip's whole motion as it is
        shape: Sequence[int] | None = None,  # of the latents, if there is no clip
        saved_embeddings: list[Tensor] | None = None,  # one for each guided step, instead of optimisation
        resume_from: State | None = None,
        stops: Sequence[int] | None = None,  # of the experts (see `expert_stops`); None: one for all steps
        on_update: OnUpdate = lambda: None,
    ):
        self.settings, self.schedule, self.texts, self.reference = settings, schedule, texts, reference
        self.on_step, self.on_update = on_step, on_update
        self.saved_embeddings, self.chosen = saved_embeddings, chosen
        self.noise = schedule.initial_noise(tuple(shape) if reference is None else reference.shape)
        latents = self.noise
        if settings.starts_from_clip:
            latents = schedule.add_noise(reference, self.noise, schedule.on_device[:1])
        self.state = resume_from or State(-1, latents, None, schedule.state(), [], 0, [])
        self.guidance: AnyGuidance | None = None
        self.reuse = Reuse(settings) if settings.reuses else None
        self.stops, self.expert = stops or [len(schedule.timesteps)], 0

    @property
    def steps_done(self) -> int:
        return self.state.index + 1

    @property
    def result(self) -> Denoised:
        """The results of the steps finished so far."""
        state = self.state
        return Denoised(state.latents, state.losses, state.skipped, state.embeddings, state.steps)

    def run(self, runner: Runner, expert: int = 0) -> Denoised:
        """Run the steps that remain of an expert, whose transformer the runner has.

        Each expert reads the clip's motion itself, and reuses nothing of the one before it.
        """
        settings, state, transformer = self.settings, self.state, runner.transformer
        if expert != self.expert:
            self.guidance, self.expert = None, expert
        device = self.noise.device
        native_embedding = transformer.embedding(transformer.grid(self.noise))
        if self.saved_embeddings:
            check_shapes(self.saved_embeddings, native_embedding, "optimise them again")
        elif settings.guidance and self.steps_done < settings.guided_steps:
            if self.guidance is None:
                self._prepare(runner, native_embedding)
            self.guidance.restore(state.skipped, state.guidance)
        resumed = [tensor for tensor in (state.embedding, *state.embeddings) if tensor is not None]
        check_shapes(resumed, native_embedding, "start a new run")
        self.schedule.restore(state.schedule)
        embedding = native_embedding if state.embedding is None else state.embedding.to(native_embedding)
        if self.reuse:
            begins = expert > 0 and self.steps_done == self.stops[expert - 1]
            self.reuse.restore({} if begins else state.reuse, device)
        injection = None
        if settings.injection:
            injection = Injection(settings.injection_blocks, self.reference, self.noise, native_embedding)
        denoise(
            runner,
            self.schedule,
            Step(state.index, state.latents.to(device), embedding, []),
            native_embedding,
            self.texts,
            Scale(settings.scale_of(expert), settings.dynamic_scale),
            settings.guided_steps,
            self.guidance,
            injection,
            self.saved_embeddings,
            self._on_step,
            self.reuse,
            self.stops[expert],
            self.on_update,
        )
        if skipped := self.state.skipped:
            logger.warning("%d optimisation steps overflowed in float16 and were skipped", skipped)
        return self.result

    def _prepare(self, runner: Runner, native_embedding: Tensor) -> None:
        settings, prompt, first, then = self.settings, self.texts.source_prompt, None, None
        if settings.gradient_steps and not settings.has_clip:
            first = prepare_drawn_guidance(settings, self.chosen, self.noise.device)
        elif settings.gradient_steps and settings.reference_noise == "step":
            given = settings, self.schedule, self.reference, self.noise, prompt, native_embedding, self.chosen
            first = prepare_noised_guidance(NoisedClip(*given))
        elif settings.gradient_steps:
            grid = runner.transformer.grid(self.reference)
            given = self.reference, prompt, native_embedding, self.chosen
            first = prepare_guidance(runner, settings, grid, *given)
        if settings.estimate_steps:
            then = prepare_estimates(settings, self.schedule, self.reference, self.noise, prompt)
        both = first and then
        self.guidance = SwitchedGuidance(first, then, settings.gradient_steps) if both else first or then
        if self.guidance.still:
            logger.warning("the model sees no motion in the clip: there is nothing to transfer")
        if self._keeps_embeddings:
            size = native_embedding.numel() * saved_dtype(settings).itemsize * settings.guided_steps
            logger.info("%s will take %.1f MB", FILE, size / 1e6)

    @property
    def _keeps_embeddings(self) -> bool:
        return self.guidance is not None and self.guidance.variable == "embedding"

    def _on_step(self, step: Step) -> None:
        before, guidance, guided = self.state, self.guidance, step.index < self.settings.guided_steps
        keeps = guided and self._keeps_embeddings
        kept = [step.embedding.to("cpu", saved_dtype(self.settings))] if keeps else []
        goes_on = step.index + 1 < self.settings.guided_steps
        self.state = State(
            step.index,
            step.latents,
            step.embedding if keeps and goes_on else None,
            self.schedule.state(),
            [*before.losses, step.losses] if step.losses else before.losses,
            guidance.skipped if guided and guidance else before.skipped,
            [*before.embeddings, *kept],
            [*before.steps, step.record | {"loss": self.settings.loss_in(step.index)}],
            self.reuse.state() if self.reuse else {},
            guidance.state() if goes_on and guidance else {},
        )
        self.on_step(step)


def check_shapes(saved: list[Tensor], native_embedding: Tensor, advice: str) -> None:
    """Raises DitflowError if saved embeddings do not have the shape of the model's embedding."""
    if any(tensor.shape != native_embedding.shape for tensor in saved):
        raise DitflowError(
            f"the saved embeddings are damaged: their shape is not {list(native_embedding.shape)}; {advice}"
        )
