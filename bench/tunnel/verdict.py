"""The rule by which a mode is judged."""

from collections.abc import Mapping

from ditflow.evaluation.intervals import Interval

MARGINS = {"path_fidelity": 0.02, "path_error": 0.03}  # differences from exact that do not matter
UNWANTED = {"path_fidelity": -1, "path_error": 1}  # the sign of a difference for the worse


def verdict(differences: Mapping[str, Interval]) -> str:
    """Judge the paired differences from exact, mode minus exact, by their 95 % intervals.

    `same`: the intervals of both measures are inside their margins. `worse`: the interval of at least one is
    wholly beyond its margin, on the unwanted side. Otherwise, as with a single pair, it is not known.

    A mode that differs by a margin is called `same` in at most 2.5 % of measurements (both measures must
    pass), and one that is not worse by more than the margins `worse` in at most 5 % (either is enough), if
    the differences are distributed normally.
    """
    if any(found.half_width is None for found in differences.values()):
        return unknown(differences)
    least, most = {}, {}
    for name in MARGINS:
        found, sign = differences[name], UNWANTED[name]
        least[name], most[name] = sign * found.mean - found.half_width, sign * found.mean + found.half_width
    if all(-margin < least[name] and most[name] < margin for name, margin in MARGINS.items()):
        return "same"
    if any(least[name] > margin for name, margin in MARGINS.items()):
        return "worse"
    return unknown(differences)


def unknown(differences: Mapping[str, Interval]) -> str:
    count = min(found.count for found in differences.values())
    return f"not known with {count} pair{'s' * (count > 1)}"
