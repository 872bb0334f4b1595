"""Operators of torch that tell an observer when they begin and end. Without one, they look at one name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps

import torch
from torch.library import CustomOpDef

_range: Callable[[str], AbstractContextManager] | None = None


@contextmanager
def observed_by(range_of: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Meanwhile every call of an operator is inside `range_of` its name."""
    global _range
    _range = range_of
    try:
        yield
    finally:
        _range = None


def operator(name: str) -> Callable[[Callable], CustomOpDef]:
    """Decorator: what torch's operator `ditflow::<name>` does; `torch.compile` does not look inside."""

    def register(function: Callable) -> CustomOpDef:
        @wraps(function)
        def observed(*arguments):
            if _range is None:
                return function(*arguments)
            with _range(name):
                return function(*arguments)

        return torch.library.custom_op(f"ditflow::{name}", mutates_args=())(observed)

    return register
