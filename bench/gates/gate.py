"""What a gate is, and the list of them."""

from collections.abc import Callable

Metrics = dict[str, int]  # values by metric
Gate = Callable[[], dict[str, Metrics]]  # measures; metrics by name, each name below the gate's own

MODELS = ("5b", "2b")
FRAMES = 24  # plans cover the long video (`bench.presets`)


def gates() -> dict[str, Gate]:
    """By name: a gate answers for the rows whose names begin with its own and a slash."""
    from bench.gates import compiled, graphs, imports, passes, rivals, steps

    return {
        name: gate
        for file in (passes, steps, rivals, graphs, imports, compiled)
        for name, gate in file.gates().items()
    }
