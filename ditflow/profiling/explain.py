"""Shows where the time of a step goes, from a trace.json.gz of `--profile`.

The report lists guided steps, plain steps, and each phase without recorded steps. A step ends with the last
work that it requested from the device, and the next one starts there. Its time is divided into:

kernels   the device computes
copies    the device only copies
host      the device is idle, and the host is inside an operator or a driver call
gaps      nothing is recorded: Python between operators, or the host waits

Without a recorded device, the time of all operators counts as host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ditflow.errors import DitflowError
from ditflow.profiling.trace import Interval, Range, Trace, Work

ROWS = 12  # in the table of operators or kernels
STEP = re.compile(r"step/\d+/(guided|plain)")
PART = re.compile(r"(optimise|block)/.*|(kernel/.*)")  # ranges inside steps; summed under the group's text
WIDTH = 46  # of names


@dataclass(frozen=True)
class Part:
    """All recorded ranges of one kind, such as the guided steps."""

    name: str
    spans: list[Interval]
    asked: list[Range]  # the host's time in them

    @property
    def microseconds(self) -> float:
        return sum(end - start for start, end in self.spans)

    def holds(self, moment: float) -> bool:
        return any(start <= moment < end for _, start, end in self.asked)


def explain(trace: Trace) -> str:
    """The report as text. Raises DitflowError if the trace has none of the project's ranges."""
    found = parts(trace)
    if not found:
        raise DitflowError("the trace has no step/... and no phase/... ranges: record it with --profile")
    return "\n".join(line for part in found for line in _lines(trace, part))


def parts(trace: Trace) -> list[Part]:
    """Steps by kind, and phases without recorded steps."""
    ranges = sorted(trace.ranges, key=lambda found: found.start)
    steps = [found for found in ranges if STEP.fullmatch(found.name)]
    spans = list(_spans(steps, trace))
    result = []
    for kind in ("guided", "plain"):
        mine = [index for index, step in enumerate(steps) if step.name.endswith(kind)]
        if mine:
            asked = [steps[index] for index in mine]
            result.append(Part(f"{kind} step", [spans[index] for index in mine], asked))
    for phase in ranges:
        apart = not any(phase.start <= step.start < phase.end for step in steps)
        if phase.name.startswith("phase/") and apart:
            result.append(Part(phase.name, list(_spans([phase], trace)), [phase]))
    return result


def shares(trace: Trace, part: Part) -> dict[str, float]:
    """A part's microseconds of kernels, copies, host and gaps; the first of these counts if they overlap."""
    layers = {**trace.device, "host": trace.host}
    result, covered = {}, []
    for name, intervals in layers.items():
        before = _overlap(part.spans, covered)
        covered = _union([*covered, *intervals])
        result[name] = _overlap(part.spans, covered) - before
    return result | {"gaps": part.microseconds - sum(result.values())}


def totals(work: Iterable[tuple[str, float]]) -> list[tuple[str, float, int]]:
    """By name: total microseconds and count, the longest first."""
    found: dict[str, tuple[float, int]] = {}
    for name, busy in work:
        time, times = found.get(name, (0.0, 0))
        found[name] = time + busy, times + 1
    return sorted(((name, *both) for name, both in found.items()), key=lambda row: -row[1])


def _lines(trace: Trace, part: Part) -> Iterator[str]:
    count, whole = len(part.spans), part.microseconds
    yield f"{part.name}: {count} recorded, {whole / count / 1000:.1f} ms each"
    for name, time in shares(trace, part).items():
        if trace.has_device or name not in trace.device:
            yield _row(name, time, whole, count, "")
    mine = [piece for piece in trace.work if part.holds(piece.asked)]
    busy = "kernels and copies" if trace.has_device else "operators"
    yield f"  {busy} asked for inside"
    for name, time, times in _inside(trace, part, mine):
        yield _row(name, time, whole, count, f"{times / count:g} a step")
    yield f"  {busy}, by their own time"
    for name, time, times in totals((piece.name, piece.busy) for piece in mine)[:ROWS]:
        yield _row(name, time, whole, count, f"{times / count:g} a step")
    yield ""


def _inside(trace: Trace, part: Part, work: list[Work]) -> list[tuple[str, float, int]]:
    """Ranges inside a part, by kind: microseconds of the work asked for in them, and their number."""
    found = []
    for inner in trace.ranges:
        match = PART.fullmatch(inner.name)
        if match and part.holds(inner.start):
            busy = sum(piece.busy for piece in work if inner.start <= piece.asked < inner.end)
            found.append((match[1] or match[2], busy))
    return totals(found)


def _row(name: str, time: float, whole: float, count: int, times: str) -> str:
    shown = name if len(name) <= WIDTH else f"{name[: WIDTH - 3]}..."
    return f"    {shown:<{WIDTH}} {time / count / 1000:10.2f} ms {time / whole:7.1%}   {times}".rstrip()


def _spans(ranges: list[Range], trace: Trace) -> Iterator[Interval]:
    """Yield each range from its start, or the end of the one before, to the end of its last work."""
    before = 0.0
    for _, start, end in ranges:
        last = max((piece.end for piece in trace.work if start <= piece.asked < end), default=end)
        span = Interval(max(start, before), max(end, last))
        before = span.end
        yield span


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as sorted intervals that do not touch."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1].end:
            result[-1] = Interval(result[-1].start, max(end, result[-1].end))
        else:
            result.append(Interval(start, end))
    return result


def _overlap(spans: list[Interval], covered: list[Interval]) -> float:
    """How much of the spans is covered; neither list may overlap itself."""
    return sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in spans
        for other_start, other_end in covered
    )
