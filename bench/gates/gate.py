"""What the gates share: what one is, which models they measure, and how many frames."""

from __future__ import annotations

from collections.abc import Callable

Metrics = dict[str, int]  # values by metric
Gate = Callable[[], dict[str, Metrics]]  # measures; metrics by name, each name under the gate's own

MODELS = ("5b", "2b")
FRAMES = 24  # the long video is for plans: `bench.presets`, whose file is a gate too
