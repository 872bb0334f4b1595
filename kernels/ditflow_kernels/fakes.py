"""The fake implementation of each operator, kept where a memory counter can call it.

A dispatch mode sees an operator as one call and misses what it allocates inside. A mode that counts memory
calls the fake instead, under itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

FAKES: dict[OpOverload, Callable[..., Any]] = {}


def fake_of(operator: OpOverload) -> Callable:
    """Decorator: register a function with torch, and here, as the operator's fake.

    The function allocates the results and the workspace exactly as the operator does, and launches nothing.
    """

    def register(fake: Callable) -> Callable:
        torch.library.register_fake(operator, fake)
        FAKES[operator] = fake
        return fake

    return register
