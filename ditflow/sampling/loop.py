"""The denoising loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ditflow.guidance.injection import Injection
from ditflow.guidance.optimise import Guidance
from ditflow.models.cogvideox.schedule import Schedule, dynamic_guidance_scale
from ditflow.models.cogvideox.text import Texts
from ditflow.models.protocols import Injected, Inputs, Runner
from ditflow.profiling import ranges
from ditflow.sampling.finite import check_latents, check_optimisation


@dataclass(frozen=True)
class Scale:
    """Classifier-free guidance: prediction = negative + scale * (prompt - negative)."""

    value: float
    dynamic: bool

    def at(self, steps: int, timestep: int) -> float:
        return dynamic_guidance_scale(self.value, steps, timestep) if self.dynamic else self.value


@dataclass(frozen=True)
class Step:
    """What a denoising step left behind, and all that the next one needs beside the schedule's own state."""

    index: int
    latents: Tensor  # [1, frames, channels, height, width]
    embedding: Tensor  # the one this step was computed with
    losses: list[float]  # before each optimisation step; empty where nothing was optimised


def denoise(
    runner: Runner,
    schedule: Schedule,
    last: Step,  # index -1, the initial noise and the model's own embedding; or any later step, to go on from
    own: Tensor,  # the model's own positional embedding
    texts: Texts,
    scale: Scale,
    guided_steps: int,
    guidance: Guidance | None,
    injection: Injection | None,
    saved_embeddings: list[Tensor] | None,
    on_step: Callable[[Step], None],
) -> Tensor:
    """From noise to clean latents; the first `guided_steps` steps follow the clip's motion.

    In those steps the clip's keys and values are injected, and the latents or the embedding are optimised or,
    given `saved_embeddings` (one a guided step), the embedding is taken from there. An optimised embedding
    carries over from one guided step to the next; after them the model's own is back.

    Raises NotFinite in the step where NaN or infinity first appears; `on_step` does not hear of that one.
    """
    latents, embedding, steps = last.latents, last.embedding, len(schedule.timesteps)
    for index in ranges.steps(range(last.index + 1, steps), guided_steps):
        timestep = schedule.on_device[index : index + 1]
        inputs = Inputs(latents, texts.prompt, timestep, embedding if index < guided_steps else own)
        injected, losses = {}, []
        if index < guided_steps:
            if injection:
                injected = injection.capture(runner, schedule, inputs)
            if saved_embeddings:
                inputs = replace(inputs, embedding=saved_embeddings[index].to(own))
            elif guidance:
                inputs, *found = guidance.optimise(runner, inputs, injected, index)
                losses, gradients = (each.tolist() for each in found)
                check_optimisation(index, losses, gradients, guidance.may_overflow)
            latents, embedding = inputs.latents, inputs.embedding

        weight = scale.at(steps, schedule.timesteps[index])
        prediction = predict(runner, inputs, texts.negative_prompt, injected, weight)
        latents = schedule.step(prediction, index, latents)
        check_latents(index, {"model's prediction": prediction, "step's result": latents})
        on_step(Step(index, latents, inputs.embedding, losses))
    return latents


def predict(
    runner: Runner, inputs: Inputs, negative_prompt: Tensor, injected: Injected, weight: float
) -> Tensor:
    """The model's prediction, away from the negative prompt by `weight`; 1 leaves that out."""
    if weight == 1:
        return runner.forward([inputs], injected)[0]
    several = [inputs, replace(inputs, prompt=negative_prompt)]
    prediction, negative = runner.forward(several, injected)
    return negative + weight * (prediction - negative)
