"""Reads the clip's keys and values in the injected blocks, at the noise level of the current step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ditflow.models.protocols import Capture, Injected, Inputs, Runner, Schedule


@dataclass(frozen=True)
class Injection:
    """The inputs from which the clip's keys and values are computed."""

    blocks: tuple[int, ...]
    reference: Tensor  # [1, frames, channels, height, width], the encoded clip
    noise: Tensor  # the run's initial noise, of the same shape
    embedding: Tensor  # the native embedding, never an optimised one

    def capture(self, runner: Runner, schedule: Schedule, inputs: Inputs) -> Injected:
        """Run one forward of the noised clip with the new prompt, up to the deepest injected block."""
        noised = schedule.add_noise(self.reference, self.noise, inputs.timestep)
        inputs = replace(inputs, latents=noised, embedding=self.embedding)
        return runner.features(inputs, {}, Capture("key_value", self.blocks))
