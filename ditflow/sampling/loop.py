"""The denoising loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from ditflow.guidance.injection import Injection
from ditflow.guidance.optimise import OnUpdate
from ditflow.guidance.switched import AnyGuidance
from ditflow.models.protocols import Injected, Inputs, Runner, Schedule, Texts
from ditflow.profiling import ranges
from ditflow.sampling.finite import check_latents, check_optimisation
from ditflow.sampling.reuse import Passes, Reuse


@dataclass(frozen=True)
class Scale:
    """Classifier-free guidance: prediction = negative + scale * (prompt - negative)."""

    value: float
    dynamic: bool

    def at(self, schedule: Schedule, index: int) -> float:
        return schedule.dynamic_scale(self.value, index) if self.dynamic else self.value


@dataclass(frozen=True)
class Step:
    """A finished denoising step: what the next step needs, besides the schedule's state."""

    index: int
    latents: Tensor  # [1, frames, channels, height, width]
    embedding: Tensor  # that this step was computed with
    losses: list[float]  # before each optimisation step; empty if nothing was optimised
    record: dict[str, Any] = field(default_factory=dict)  # for run.json
    estimate: Callable[[], Tensor] | None = None  # the clean latents that the step has aimed at


def denoise(
    runner: Runner,
    schedule: Schedule,
    last: Step,  # the last finished step; before the first: index -1, initial noise, native embedding
    native_embedding: Tensor,  # the model's positional embedding, not optimised
    texts: Texts,
    scale: Scale,
    guided_steps: int,
    guidance: AnyGuidance | None,
    injection: Injection | None,
    saved_embeddings: list[Tensor] | None,
    on_step: Callable[[Step], None],
    reuse: Reuse | None = None,
    stop: int | None = None,  # the number of steps after which to stop; None: all
    on_update: OnUpdate = lambda: None,
) -> Tensor:
    """Denoise from noise to clean latents. The first `guided_steps` steps follow the clip's motion.

    A guided step injects the clip's keys and values, then optimises the latents or the embedding. With
    `saved_embeddings` (one for each guided step) it uses those instead of optimising. An optimised embedding
    carries over to the next guided step; the other steps use the native embedding, and may `reuse` results of
    earlier steps.

    Raises NotFinite in the step in which NaN or infinity first appears; `on_step` is not called for it.
    """
    latents, embedding = last.latents, last.embedding
    end = len(schedule.timesteps) if stop is None else stop
    for index in ranges.steps(range(last.index + 1, end), guided_steps):
        timestep, guided = schedule.on_device[index : index + 1], index < guided_steps
        inputs = Inputs(latents, texts.prompt, timestep, embedding if guided else native_embedding)
        injected, losses, cosine = {}, [], None
        if guided:
            if injection:
                injected = injection.capture(runner, schedule, inputs)
            if saved_embeddings:
                inputs = replace(inputs, embedding=saved_embeddings[index].to(native_embedding))
            elif guidance:
                found = guidance.optimise(runner, inputs, injected, index, on_update)
                inputs, losses, gradients = found.inputs, found.losses.tolist(), found.gradients.tolist()
                check_optimisation(index, losses, gradients, guidance.may_overflow, guidance.gradient_reuse)
                if found.cosine is not None and found.cosine.isfinite():
                    cosine = float(found.cosine)
            latents, embedding = inputs.latents, inputs.embedding

        weight = scale.at(schedule, index)
        if guided or not reuse:
            prediction = predict(runner, inputs, texts.negative_prompt, injected, weight)
            passes = Passes("run", "none" if weight == 1 else "run")
        else:
            prediction, passes = reuse.predict(runner, inputs, texts.negative_prompt, weight)
        latents = schedule.step(prediction, index, latents)
        check_latents(index, {"model's prediction": prediction, "step's result": latents})
        record = {"guidance_scale": weight, **passes._asdict(), "gradient_cosine": cosine}
        estimate = partial(schedule.estimate_clean, prediction, inputs.latents, timestep)
        on_step(Step(index, latents, inputs.embedding, losses, record, estimate))
    return latents


def predict(
    runner: Runner, inputs: Inputs, negative_prompt: Tensor, injected: Injected, weight: float
) -> Tensor:
    """The prediction with classifier-free guidance. With a weight of 1 the negative prompt is not used."""
    if weight == 1:
        return runner.forward([inputs], injected)[0]
    batch = [inputs, replace(inputs, prompt=negative_prompt)]
    prediction, negative = runner.forward(batch, injected)
    return negative + weight * (prediction - negative)
