"""The launchers behind the operators, for whoever counts what they allocate.

Torch shows a dispatch mode an operator, not what happens inside it: a counting mode runs the launcher itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

LAUNCHERS: dict[OpOverload, Callable[..., Any]] = {}  # with the launch itself left out


def launcher_of(operation: OpOverload) -> Callable:
    """Decorator: this is what the operation does but for its launches, and so also its fake."""

    def register(launcher: Callable) -> Callable:
        torch.library.register_fake(operation, launcher)
        LAUNCHERS[operation] = launcher
        return launcher

    return register
