"""Resample frames in time: which of a video's frames each frame of a clip shows."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor

RATE_TOLERANCE = 0.2  # relative, between the declared frame rate and the measured one


@dataclass(frozen=True)
class Resampling:
    """A clip of constant rate that shows each video frame at its time."""

    rate: Fraction | None  # frames a second; None: unknown
    count: int  # frames of the clip
    slots: Sequence[int]  # the first frame of the clip at which each video frame may be shown, ascending
    note: str = ""  # what was changed, for the user

    def shown_at(self, index: int) -> int:
        """The video frame that frame `index` of the clip shows: the last one whose slot has come."""
        return bisect_right(self.slots, index) - 1


def resampled(
    times: Sequence[Fraction],  # seconds at which each video frame is first shown, ascending, at least two
    last_shown: Fraction,  # seconds for which the last one is shown; 0: unknown
    declared: Fraction | None,  # frames a second, if the file says so
    fps: Fraction | None,  # of the clip; None: the video's own mean
) -> Resampling:
    """Keep frames of constant rate, unless `fps` is given; resample others to their mean rate."""
    count, span = len(times), times[-1] - times[0]
    duration = span + (last_shown or span / (count - 1))
    mean = count / duration
    own = _constant_rate(times, declared or mean)
    if own and not fps:
        return Resampling(own, count, range(count))
    rate = fps or mean
    slots = [_slot(times, index, rate) for index in range(count)]
    total = max(floor(duration * rate + Fraction(1, 2)), 1)
    return Resampling(rate, total, slots, "" if own else _variable(times, rate))


def _constant_rate(times: Sequence[Fraction], declared: Fraction) -> Fraction | None:
    """The rate at which every frame is shown in its turn, or None: their rate varies."""
    measured = (len(times) - 1) / (times[-1] - times[0])
    # browsers record files that declare 1000 frames a second
    if abs(declared / measured - 1) < RATE_TOLERANCE and _is_even(times, declared):
        return declared
    return (measured.limit_denominator(1001) or measured) if _is_even(times, measured) else None


def _is_even(times: Sequence[Fraction], rate: Fraction) -> bool:
    return all(_slot(times, index, rate) == index for index in range(len(times)))


def _slot(times: Sequence[Fraction], index: int, rate: Fraction) -> int:
    """The frame of the clip that is nearest in time, as in FFmpeg's `fps` filter."""
    return floor((times[index] - times[0]) * rate + Fraction(1, 2))


def _variable(times: Sequence[Fraction], rate: Fraction) -> str:
    gaps = [after - before for before, after in pairwise(times) if after > before]
    slowest, fastest = float(1 / max(gaps)), float(1 / min(gaps))
    return (
        f"variable frame rate ({slowest:.3g} to {fastest:.3g} frames a second): "
        f"resampled to {float(rate):.4g} frames a second"
    )
