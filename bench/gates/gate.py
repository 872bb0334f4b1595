"""What the gates share: what one is, and which models they measure."""

from __future__ import annotations

from collections.abc import Callable

Metrics = dict[str, int]  # values by metric
Gate = Callable[[], dict[str, Metrics]]  # measures; metrics by name, each name under the gate's own

MODELS = ("5b", "2b")
