"""The committed table of exact measurements: its rows, and how a measurement differs from them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ditflow.files import whole_or_absent

TABLE = Path(__file__).parents[1] / "expected.csv"
# of new rows: the smallest tensors come and go with torch's version, the library's modules with Python's
MARGINS = {"peak_bytes": 0.001, "saved_bytes": 0.001, "modules": 0.1}
LESS_IS_BETTER = {
    *("flops", "attention_flops", "peak_bytes", "copied_bytes", "saved_bytes", "graph_breaks", "modules"),
    *("registers", "stack", "shared"),
}
ADVICE = 'If it is meant: make bench-accept REASON="why it changed", and commit bench/expected.csv.'

Measured = Mapping[str, Mapping[str, int]]  # by name, then by metric


@dataclass(frozen=True)
class Row:
    name: str
    metric: str
    expected: int
    margin: float  # the share of `expected` that a measurement may be off
    reason: str  # why it was measured anew, the last time

    def holds(self, measured: int) -> bool:
        return abs(measured - self.expected) <= self.margin * self.expected


@dataclass(frozen=True)
class Difference:
    """A measurement outside its row's margin, or one of the two alone."""

    name: str
    metric: str
    expected: int | None  # None: there is no row
    measured: int | None  # None: nothing measures it

    def __str__(self) -> str:
        numbers = " -> ".join(
            "nothing" if value is None else f"{value:,}" for value in (self.expected, self.measured)
        )
        return f"{self.name} {self.metric}: {numbers}, {self._verdict()}"

    def _verdict(self) -> str:
        if self.expected is None:
            return "a missing row"
        if self.measured is None:
            return "a stale row: nothing measures it any more"
        change = self.measured - self.expected
        share = f"{100 * change / self.expected:+.2f} %" if self.expected else f"{change:+,}"
        if self.metric not in LESS_IS_BETTER:
            return f"{share}: a change"
        return f"{share}: {'a regression' if change > 0 else 'an unexplained win'}"


def read(path: Path = TABLE) -> list[Row]:
    """Raises ValueError where two rows are of the same name and metric, as a merge may leave them."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            Row(**line | {"expected": int(line["expected"]), "margin": float(line["margin"])})
            for line in csv.DictReader(file)
        ]
    twice = [key for key, count in Counter((row.name, row.metric) for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: more than one row of {', '.join(map(' '.join, twice))}; keep one of each")
    return rows


def write(rows: Iterable[Row], path: Path = TABLE) -> None:
    with whole_or_absent(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def rows_of(gate: str, rows: Iterable[Row]) -> list[Row]:
    """Those that a gate answers for."""
    return [row for row in rows if row.name.startswith(f"{gate}/")]


def differences(rows: Iterable[Row], measured: Measured) -> Iterator[Difference]:
    """In the order of what was measured; stale rows last."""
    known = {(row.name, row.metric): row for row in rows}
    for name, metric, value in _flat(measured):
        row = known.pop((name, metric), None)
        if row is None or not row.holds(value):
            yield Difference(name, metric, row and row.expected, value)
    for row in known.values():
        yield Difference(row.name, row.metric, row.expected, None)


def report(found: Iterable[Difference]) -> str:
    """Nothing where nothing differs."""
    lines = [str(difference) for difference in found]
    return "\n".join([*lines, ADVICE]) if lines else ""


def refreshed(rows: Iterable[Row], measured: Measured, reason: str) -> list[Row]:
    """The table after a measurement: rows that hold stay as they are, others get value and reason."""
    known = {(row.name, row.metric): row for row in rows}
    result = []
    for name, metric, value in _flat(measured):
        row = known.get((name, metric)) or Row(name, metric, -1, MARGINS.get(metric, 0.0), "")
        result.append(row if row.holds(value) else replace(row, expected=value, reason=reason))
    return result


def _flat(measured: Measured) -> Iterator[tuple[str, str, int]]:
    for name, metrics in measured.items():
        for metric, value in metrics.items():
            yield name, metric, value
