"""Every gate by its name: it answers for the rows whose names begin with that and a slash."""

from __future__ import annotations

from bench.gates import coding, compiled, graphs, imports, passes, steps, streaming
from bench.gates.gate import Gate

ROOMS = (passes, steps, streaming, coding, graphs, imports, compiled)


def gates() -> dict[str, Gate]:
    return {name: gate for room in ROOMS for name, gate in room.gates().items()}
