"""Measures again and writes what differs into the table: `make bench-accept REASON="why it changed"`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gates.gate import Gate, gates
from bench.gates.table import TABLE, differences, read, refreshed, write


def main(words: Sequence[str]) -> int:
    """The exit code: 2 without a reason."""
    reason = " ".join(" ".join(words).split())
    if not reason:
        print('bench-accept: no reason given; say why: make bench-accept REASON="..."', file=sys.stderr)
        return 2
    accept(gates(), reason)
    return 0


def accept(gates: Mapping[str, Gate], reason: str, path: Path = TABLE) -> None:
    """Print each difference and write it with the reason. Rows that hold are not touched."""
    rows, measured = read(path), {}
    for name, gate in gates.items():
        print(f"measuring {name}", file=sys.stderr)
        measured |= gate()
    found = list(differences(rows, measured))
    for difference in found:
        print(difference)
    if not found:
        print(f"{path.name}: nothing to accept, every row holds")
        return
    write(refreshed(rows, measured, reason), path)
    print(f"{path.name}: {len(found)} rows changed: {reason}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
