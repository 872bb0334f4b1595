"""Models whose denoising steps are shared by several transformers, one for each range of noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EXPERT_NAMES = ("high", "low")  # what settings call the transformers of more and of less noise


class Expert(NamedTuple):
    """One of the transformers that share a run's steps."""

    part: str  # its folder in a pipeline
    least: float  # the lowest timestep of its steps, as a share of the trained timesteps
    name: str = ""  # one of EXPERT_NAMES, if there are several


ONE = (Expert("transformer", 0.0),)


def expert_stops(experts: Sequence[Expert], timesteps: Sequence[float], trained: int) -> list[int]:
    """For each expert, in the order of the steps, the number of steps done when its own are done.

    `trained`: the number of timesteps in training.
    """
    return [sum(timestep >= expert.least * trained for timestep in timesteps) for expert in experts]


def split_expert(given: str) -> tuple[str, str]:
    """Split a setting such as `high=FILE` into the expert's name and FILE; without a name it is empty."""
    name, equals, rest = given.partition("=")
    return (name, rest) if equals and name in EXPERT_NAMES else ("", given)
