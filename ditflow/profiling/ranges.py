"""Names for what a run does, for a profiler to show beside its kernels.

| range                     | what it spans                                                     |
| ------------------------- | ----------------------------------------------------------------- |
| `phase/denoise`           | a phase of a job: text, encode, denoise, decode                   |
| `step/003/guided`         | a denoising step, from 0; the last word is `guided` or `plain`    |
| `optimise/003/1`          | an optimisation step, from 0, of that denoising step              |
| `block/20`                | a block of the transformer, once each time a pass goes through it |
| `kernel/motion_flow_loss` | an operator of `ditflow_kernels`: all that it launches            |

While nobody looks nothing is paid: loops run over what they were given, and an operator looks at one name.
Ranges open and close outside of what `torch.compile` sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Observer(Protocol):
    """Whoever wants the ranges."""

    def range(self, name: str) -> AbstractContextManager:
        """A range, open while the context lasts."""

    def steps(self, indices: range, guided: int) -> Iterable[int]:
        """The denoising steps to come, the first `guided` of all being guided ones; given back one by one."""


_observer: Observer | None = None


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Tell an observer of everything in this process."""
    global _observer
    from ditflow_kernels import observed  # brings torch

    with observed.observed_by(lambda operator: observer.range(f"kernel/{operator}")):
        _observer = observer
        try:
            yield
        finally:
            _observer = None


def phase(name: str) -> AbstractContextManager:
    """A phase of a job."""
    return nullcontext() if _observer is None else _observer.range(f"phase/{name}")


def steps(indices: range, guided: int) -> Iterable[int]:
    """Denoising steps, the first `guided` of all being guided ones."""
    if _observer is None:
        return indices
    kinds = ("plain", "guided")
    return _named(_observer, _observer.steps(indices, guided), lambda i: f"step/{i:03d}/{kinds[i < guided]}")


def optimisation_steps(step: int, count: int) -> Iterable[int]:
    """The optimisation steps of a denoising step."""
    if _observer is None:
        return range(count)
    return _named(_observer, range(count), lambda i: f"optimise/{step:03d}/{i}")


def blocks(order: Iterable[int]) -> Iterable[int]:
    """The transformer's blocks as a pass goes through them."""
    return order if _observer is None else _named(_observer, order, lambda i: f"block/{i:02d}")


def _named(observer: Observer, indices: Iterable[int], name: Callable[[int], str]) -> Iterator[int]:
    for index in indices:
        with observer.range(name(index)):
            yield index
