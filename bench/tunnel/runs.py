"""Runs any part of a transfer, by the program's own job: from a stored state, up to a step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditflow.jobs.job import Job
from ditflow.jobs.needs import transfer_needs
from ditflow.jobs.opening import begin_job
from ditflow.models.protocols import Runner, Schedule
from ditflow.progress import Progress
from ditflow.run_folder.checkpoint import State
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings

NUDGE = 0.02  # how far the control's noise is from the others'


@dataclass(frozen=True)
class Part:
    """What a part of a transfer has done."""

    states: dict[int, State]  # after each of its steps; -1: before the first
    optimised: dict[int, Tensor]  # the latents that each of its steps was denoised from

    @property
    def latents(self) -> Tensor:
        return self.states[max(self.states)].latents


class Excerpt:
    """A schedule that ends before step `end`, and keeps the latents that its steps are given."""

    def __init__(self, schedule: Schedule, end: int):
        self.schedule, self.timesteps = schedule, schedule.timesteps[:end]
        self.given: dict[int, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
        self.given[index] = latents
        return self.schedule.step(prediction, index, latents)


class NudgedNoise:
    """A schedule whose noise of every step differs by NUDGE.

    A sampler that adds noise forgets the noise that it started from; at a terminal SNR of 0, in one step. Two
    twins take the same steps, so that they differ from each other only in their noise: that difference is
    noise too.
    """

    def __init__(self, schedule: Schedule, twins: tuple[Schedule, Schedule]):
        self.schedule, self.twins = schedule, twins

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)

    def step(self, prediction: Tensor, index: int, latents: Tensor) -> Tensor:
        one, other = (twin.step(prediction, index, latents) for twin in self.twins)
        return self.schedule.step(prediction, index, latents) + NUDGE / math.sqrt(2) * (one - other)


class Session:
    """One mode's job for one pair; each run of it has its own schedule and noise generator."""

    def __init__(self, job: Job):
        self.job, self.settings = job, job.settings
        self.texts, self.reference = job.texts(), job.encode() if job.settings.has_clip else None

    @cached_property
    def runner(self) -> Runner:
        return self.job.runner()

    def run(self, start: State | None = None, end: int | None = None) -> Part:
        """The steps from `start` (None: from noise) to before step `end` (None: to the last)."""
        return self._run(self.job.schedule(), start, end)

    def run_nudged(self, start: State) -> Part:
        """The control: the steps from `start`, its noise and that of every step different by NUDGE."""
        settings, folder = self.settings, self.job.folder
        # not the run's own seed, which would give the same noise
        generators = (torch.Generator().manual_seed(settings.seed + other) for other in (2, 3))
        twins = tuple(
            folder.schedule(settings.scheduler, settings.steps, settings.size, each) for each in generators
        )
        return self._run(NudgedNoise(self.job.schedule(), twins), nudged(start, settings.seed))

    def _run(self, schedule: Schedule, start: State | None, end: int | None = None) -> Part:
        schedule = Excerpt(schedule, self.settings.steps if end is None else end)
        denoising = self._denoising(schedule, start)
        part = Part({denoising.state.index: denoising.state}, schedule.given)
        denoising.on_step = lambda step: part.states.update({step.index: denoising.state})
        self.job.memory.run("denoise", lambda: denoising.run(self.runner))
        return part

    def frames(self, latents: Tensor) -> np.ndarray:
        """The decoded video, uint8 [frames, height, width, 3]."""
        return self.job.decode(latents).frames

    def _denoising(self, schedule: Schedule, start: State | None) -> Denoising:
        return Denoising(
            self.settings,
            schedule,
            self.texts,
            self.reference,
            lambda step: None,
            chosen=self.job.chosen,
            shape=self.job.folder.latent_shape(self.settings.frames, self.settings.size),
            saved_embeddings=self.job.saved_embeddings,
            resume_from=start,
        )


@contextmanager
def session(settings: Settings) -> Iterator[Session]:
    """Begin a mode's job. Raises DitflowError if this machine cannot run it."""
    with begin_job(settings, Progress(), needs=transfer_needs(settings), kind="tunnel") as job:
        yield Session(job)


def nudged(state: State, seed: int) -> State:
    """A state with other noise mixed into its latents, NUDGE of it, so that noise keeps its variance.

    `seed`: the run's. The generator of its schedule is left as it is: the noise of the steps to come is the
    same.
    """
    # the run's own seed gives the noise that is there already
    other = torch.randn(state.latents.shape, generator=torch.Generator().manual_seed(seed + 1))
    latents = math.sqrt(1 - NUDGE**2) * state.latents + NUDGE * other.to(state.latents)
    return replace(state, latents=latents)
