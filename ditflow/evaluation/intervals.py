"""Means with their confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t at 97.5 %, for 1, 2, ... degrees of freedom
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
QUANTILES += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
QUANTILES += (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
NORMAL, CORRECTION = 1.960, 2.42  # for more: NORMAL + CORRECTION / degrees, right to three digits


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval, mean +- half_width (Student's t)."""

    mean: float
    half_width: float | None  # None for a single value
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half_width is None else f"{self.mean:.3f} ± {self.half_width:.3f}"


def interval(values: Sequence[float]) -> Interval | None:
    """The interval of independent values; None if there are none."""
    if not values:
        return None
    degrees = len(values) - 1
    if not degrees:
        return Interval(float(values[0]), None, 1)
    quantile = QUANTILES[degrees - 1] if degrees <= len(QUANTILES) else NORMAL + CORRECTION / degrees
    half_width = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.fmean(values), half_width, len(values))
