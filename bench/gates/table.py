"""The committed table of exact measurements: its rows, and how a measurement differs from them."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ditflow.files import whole_or_absent

TABLE = Path(__file__).parents[1] / "expected.csv"
# of new rows: the smallest tensors vary with torch's version, the library's modules with Python's
MARGINS = {"peak_bytes": 0.001, "saved_bytes": 0.001, "modules": 0.1}
LESS_IS_BETTER = {
    *("flops", "attention_flops", "optimisation_flops", "peak_bytes", "copied_bytes", "saved_bytes"),
    *("graph_breaks", "modules", "registers", "stack", "shared"),
}
ADVICE = 'If it is meant: make bench-accept REASON="why it changed", and commit bench/expected.csv.'

Measured = Mapping[str, Mapping[str, int]]  # by name, then by metric


@dataclass(frozen=True)
class Row:
    name: str
    metric: str
    expected: int
    margin: float  # the share of `expected` that a measurement may be off
    reason: str  # for its last change

    def holds(self, measured: int) -> bool:
        return abs(measured - self.expected) <= self.margin * self.expected


@dataclass(frozen=True)
class Difference:
    """A measurement outside its row's margin, a measurement without a row, or a row without one."""

    name: str
    metric: str
    expected: int | None
    measured: int | None

    def __str__(self) -> str:
        values = self.expected, self.measured
        before, now = ("nothing" if value is None else f"{value:,}" for value in values)
        return f"{self.name} {self.metric}: {before} -> {now}, {self._verdict()}"

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
    """Raises ValueError for two rows of the same name and metric, which a merge may leave."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            Row(**line | {"expected": int(line["expected"]), "margin": float(line["margin"])})
            for line in csv.DictReader(file)
        ]
    counts = Counter(f"{row.name} {row.metric}" for row in rows)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"{path}: more than one row of {', '.join(twice)}; keep one of each")
    return rows


def write(rows: Iterable[Row], path: Path = TABLE) -> None:
    with whole_or_absent(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def rows_of(gate: str, rows: Iterable[Row]) -> list[Row]:
    """Those that a gate answers for."""
    return [row for row in rows if row.name.startswith(f"{gate}/")]


def differences(rows: Iterable[Row], measured: Measured) -> Iterator[Difference]:
    """In the order of the measurements; stale rows last."""
    known = {(row.name, row.metric): row for row in rows}
    for name, metric, value in _flat(measured):
        row = known.pop((name, metric), None)
        if row is None or not row.holds(value):
            yield Difference(name, metric, row and row.expected, value)
    for row in known.values():
        yield Difference(row.name, row.metric, row.expected, None)


def report(found: Iterable[Difference]) -> str:
    """A line for each difference, and advice; empty if there are none."""
    lines = [str(difference) for difference in found]
    return "\n".join([*lines, ADVICE]) if lines else ""


def refreshed(rows: Iterable[Row], measured: Measured, reason: str) -> list[Row]:
    """The table after a measurement: rows that hold are kept, others get its value and the reason."""
    known, result = {(row.name, row.metric): row for row in rows}, []
    for name, metric, value in _flat(measured):
        row = known.get((name, metric)) or Row(name, metric, -1, MARGINS.get(metric, 0.0), "")
        result.append(row if row.holds(value) else replace(row, expected=value, reason=reason))
    return result


def _flat(measured: Measured) -> Iterator[tuple[str, str, int]]:
    return ((name, metric, value) for name, row in measured.items() for metric, value in row.items())
