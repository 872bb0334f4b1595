"""Names for what a run does, for a profiler to show beside its kernels.

| range                     | what it spans                                                     |
| ------------------------- | ----------------------------------------------------------------- |
| `phase/denoise`           | a phase of a job: text, encode, denoise, decode                   |
| `step/003/guided`         | a denoising step, from 0; the last word is `guided` or `plain`    |
| `optimise/003/1`          | an optimisation step, from 0, of that denoising step              |
| `block/20`                | a block of the transformer, once each time a pass goes through it |
| `kernel/motion_flow_loss` | an operator of `ditflow_kernels`: all that it launches            |

While nobody looks nothing is paid: loops run over what they were given, and operators call their plain
functions. While an observer looks, these functions are exchanged for named ones. Ranges open and close
outside of what `torch.compile` sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from importlib import import_module
from typing import Protocol

# the functions of a backend of `ditflow_kernels`, and the operators that call them
KERNELS = {
    "motion_flow": {
        "soft_flow": "motion_flow",
        "flow_gradients": "motion_flow_backward",
        "hard_flow": "motion_flow_hard",
        "loss_and_gradients": "motion_flow_loss",
    },
    "qk_norm_rope": {
        "qk_norm_rope_forward": "qk_norm_rope",
        "qk_norm_rope_backward": "qk_norm_rope_backward",
    },
}


class Observer(Protocol):
    """Whoever wants the ranges."""

    def range(self, name: str) -> AbstractContextManager:
        """A range, open while the context lasts."""

    def steps(self, indices: range, guided: int) -> Iterable[int]:
        """The denoising steps to come, the first `guided` of all being guided ones; given back one by one."""


_observer: Observer | None = None


@contextmanager
def observed_by(observer: Observer, backends: Iterable[str]) -> Iterator[None]:
    """Tell an observer of everything in this process; `backends` are those of `ditflow_kernels` in use."""
    global _observer
    with ExitStack() as undo:
        for backend in backends:
            for operation, functions in KERNELS.items():
                passes = import_module(f"ditflow_kernels.{operation}.{backend}")
                for name, operator in functions.items():
                    plain = getattr(passes, name)
                    setattr(passes, name, _named_function(observer, f"kernel/{operator}", plain))
                    undo.callback(setattr, passes, name, plain)
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


def _named_function(observer: Observer, name: str, function: Callable) -> Callable:
    @wraps(function)
    def named(*arguments, **keywords):
        with observer.range(name):
            return function(*arguments, **keywords)

    return named
