"""Named ranges around the parts of a run, for profilers to show beside the kernels.

| range                     | what it spans                                                   |
| ------------------------- | --------------------------------------------------------------- |
| `phase/denoise`           | a phase of a job: text, encode, denoise, decode                 |
| `step/003/guided`         | a denoising step, counted from 0: `guided` or `plain`           |
| `optimise/003/1`          | an optimisation step of denoising step 3, counted from 0        |
| `block/20`                | one pass through a transformer block                            |
| `kernel/motion_flow_loss` | an operator of `ditflow_kernels`, with everything it launches   |

Without an observer they cost nothing: loops get their iterables back, and an operator checks one variable.
Ranges open and close outside the code that `torch.compile` traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Observer(Protocol):
    """Receives the ranges, such as a profiler."""

    def range(self, name: str) -> AbstractContextManager:
        """A range that is open as long as the context."""

    def steps(self, indices: range, guided: int) -> Iterable[int]:
        """Yield the coming denoising steps one by one. Steps below `guided` are guided."""


_observer: Observer | None = None


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Report every range of this process to an observer."""
    global _observer
    from ditflow_kernels import observed  # brings torch

    with observed.observed_by(lambda operator: observer.range(f"kernel/{operator}")):
        _observer = observer
        try:
            yield
        finally:
            _observer = None


def phase(name: str) -> AbstractContextManager:
    """The range of a phase of a job."""
    return nullcontext() if _observer is None else _observer.range(f"phase/{name}")


def steps(indices: range, guided: int) -> Iterable[int]:
    """The denoising steps, each in its range. Steps below `guided` are guided."""
    if _observer is None:
        return indices
    kinds = ("plain", "guided")
    return _named(_observer, _observer.steps(indices, guided), lambda i: f"step/{i:03d}/{kinds[i < guided]}")


def optimisation_steps(step: int, count: int) -> Iterable[int]:
    """The optimisation steps of a denoising step, each in its range."""
    if _observer is None:
        return range(count)
    return _named(_observer, range(count), lambda i: f"optimise/{step:03d}/{i}")


def blocks(order: Iterable[int]) -> Iterable[int]:
    """Transformer blocks in the order of a pass, each in its range."""
    return order if _observer is None else _named(_observer, order, lambda i: f"block/{i:02d}")


def _named(observer: Observer, indices: Iterable[int], name: Callable[[int], str]) -> Iterator[int]:
    for index in indices:
        with observer.range(name(index)):
            yield index
