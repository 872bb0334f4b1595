"""Guidance without a backward pass: match estimates of the clean latents (loss `x0`), after FlowMotion.

The model's prediction is a constant of each update, so the network needs no gradient. What is held constant
is the velocity, noise - clean latents, whatever the model predicts: with latents = a * clean + b * noise,
the clean latents are (latents - b * velocity) / (a + b). So they depend on the latents even where a is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ditflow.guidance.optimise import OnUpdate, Optimised, in_layout_of, is_still, learning_rates
from ditflow.models.protocols import Injected, Inputs, Runner, Schedule, Variable
from ditflow.profiling import ranges
from ditflow.settings import Settings

VALUES, DIFFERENCES = 20.0, 5.0  # weights of the loss's terms, as published
PERPENDICULAR = 0.1  # factor on the velocity's part that is new in a step, as published


def estimate_loss(estimate: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """How far an estimate is from the clip's, and the gradient to the estimate.

    Both are [1, frames, channels, height, width]. The loss is VALUES times the mean square of their
    difference, and DIFFERENCES times that of the absolute differences between frames, once over neighbouring
    frames and once over all pairs.
    """
    distance = estimate - clip
    loss = VALUES * distance.square().mean()
    gradient = 2 * VALUES / distance.numel() * distance
    frames = estimate.shape[1]
    pairs = frames * (frames - 1) / 2
    for gap in range(1, frames):
        weight = DIFFERENCES * ((frames - gap) / pairs + (gap == 1))
        motion = estimate[:, gap:] - estimate[:, :-gap]
        excess = motion.abs() - (clip[:, gap:] - clip[:, :-gap]).abs()
        loss = loss + weight * excess.square().mean()
        pull = 2 * weight / excess.numel() * excess * motion.sign()
        gradient[:, gap:] += pull
        gradient[:, :-gap] -= pull
    return loss, gradient


def damped(velocity: Tensor, direction: Tensor | None) -> Tensor:
    """The velocity with its part perpendicular to `direction` scaled by PERPENDICULAR.

    Both are taken as one vector each. Without a direction, as in the first step, nothing is scaled.
    """
    if direction is None:
        return velocity
    share = (velocity * direction).sum() / direction.square().sum()
    return torch.lerp(share * direction, velocity, PERPENDICULAR)


@dataclass
class EstimateGuidance:
    """The optimisation of latents in every guided step: match the clip's estimate at the same noise level."""

    schedule: Schedule
    reference: Tensor  # [1, frames, channels, height, width], the encoded clip
    noise: Tensor  # the run's initial noise, of the same shape
    source_prompt: Tensor  # [1, text tokens, text channels]
    steps: int
    learning_rates: list[float]  # one for each guided step
    velocities: Tensor | None = None  # the sum of those that the guided steps so far began with

    variable: ClassVar[Variable] = "latents"
    may_overflow: ClassVar[bool] = False  # no update is skipped: losses and gradients are in float32
    skipped: ClassVar[int] = 0
    gradient_reuse: ClassVar[int] = 1

    def optimise(
        self,
        runner: Runner,
        inputs: Inputs,
        injected: Injected,
        index: int,
        on_update: OnUpdate = lambda: None,
    ) -> Optimised:
        """Optimise the latents in guided step `index`."""
        return self.update(runner, inputs, injected, index, self.clip_estimate(runner, inputs), on_update)

    def clip_estimate(self, runner: Runner, inputs: Inputs) -> Tensor:
        """The estimate of the clip's clean latents at the noise level of `inputs`, from one forward."""
        noised = self.schedule.add_noise(self.reference, self.noise, inputs.timestep)
        inputs = replace(inputs, latents=noised, prompt=self.source_prompt)
        (prediction,) = runner.forward([inputs], {})
        return self.schedule.estimate_clean(prediction, noised, inputs.timestep)

    def update(
        self,
        runner: Runner,
        inputs: Inputs,
        injected: Injected,
        index: int,
        clip: Tensor,
        on_update: OnUpdate = lambda: None,
    ) -> Optimised:
        """The step's updates, each with one forward, towards the clip's estimate."""
        latents, direction = inputs.latents.clone(), self.velocities
        adam = torch.optim.Adam([latents], lr=self.learning_rates[index], fused=True)
        one, zero = (torch.full_like(latents[:, :1, :1, :1, :1], value) for value in (1, 0))
        signal = self.schedule.add_noise(one, zero, inputs.timestep)
        noise = self.schedule.add_noise(zero, one, inputs.timestep)
        losses, gradients, cosine = [], [], None
        for update in ranges.optimisation_steps(index, self.steps):
            on_update()
            (prediction,) = runner.forward([replace(inputs, latents=latents)], injected)
            clean = self.schedule.estimate_clean(prediction, latents, inputs.timestep)
            velocity = (latents - (signal + noise) * clean) / noise
            if not update:
                self.velocities = velocity if direction is None else direction + velocity
            estimate = (latents - noise * damped(velocity, direction)) / (signal + noise)
            loss, gradient = estimate_loss(estimate, clip)
            before = latents.grad
            latents.grad = in_layout_of(latents, gradient / (signal + noise))
            losses.append(loss)
            if len(losses) == 2:
                cosine = cosine_similarity(before.flatten(), latents.grad.flatten(), dim=0)
            gradients.append(latents.grad.sum())
            adam.step()
        optimised = replace(inputs, latents=latents.detach())
        return Optimised(optimised, torch.stack(losses), torch.stack(gradients), cosine)

    @property
    def still(self) -> bool:
        """Whether the clip shows no motion, so that there is nothing to match."""
        return is_still(self.reference)

    def state(self) -> dict[str, Tensor]:
        """What the next guided step depends on, by name."""
        return {} if self.velocities is None else {"velocities": self.velocities}

    def restore(self, skipped: int, state: Mapping[str, Tensor]) -> None:
        """Go on from the state that a guided step left."""
        velocities = state.get("velocities")
        self.velocities = None if velocities is None else velocities.to(self.reference)


def prepare_estimates(
    settings: Settings, schedule: Schedule, reference: Tensor, noise: Tensor, source_prompt: Tensor
) -> EstimateGuidance:
    """Guidance by the loss `x0`. It reads the clip in every guided step, so nothing is computed here."""
    return EstimateGuidance(
        schedule,
        reference,
        noise,
        source_prompt,
        settings.updates,
        learning_rates(*settings.update_rate, settings.guided_steps),
    )
