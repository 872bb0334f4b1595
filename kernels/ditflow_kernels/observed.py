"""Torch operators whose calls a profiler can see by name. Without an observer a call costs one comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps

import torch
from torch.library import CustomOpDef

_range: Callable[[str], AbstractContextManager] | None = None


@contextmanager
def observed_by(range_of: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Run every operator call inside the context manager `range_of(operator name)`."""
    global _range
    _range = range_of
    try:
        yield
    finally:
        _range = None


def operator(name: str) -> Callable[[Callable], CustomOpDef]:
    """Decorator: make the function torch's operator `ditflow::<name>`, opaque to `torch.compile`."""

    def register(function: Callable) -> CustomOpDef:
        @wraps(function)
        def observed(*arguments):
            if _range is None:
                return function(*arguments)
            with _range(name):
                return function(*arguments)

        return torch.library.custom_op(f"ditflow::{name}", mutates_args=())(observed)

    return register
