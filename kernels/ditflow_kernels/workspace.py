"""How much temporary memory a plain PyTorch pass holds at a time."""

from collections.abc import Iterator

MIB = 1 << 20
# cpu: more buys no speed (see bench/LOG.md); cuda: a guess, not measured yet
WORKSPACE_BYTES = {"cpu": 64 * MIB, "cuda": 256 * MIB}


def workspace_bytes(device_type: str) -> int:
    """The byte budget of one pass on that kind of device."""
    return WORKSPACE_BYTES.get(device_type, WORKSPACE_BYTES["cpu"])


def panels(rows: int, bytes_per_row: int, budget: int) -> Iterator[slice]:
    """Cut `rows` into the fewest stretches that fit `budget` bytes each: nearly equal, one row at least."""
    at_most = max(1, budget // bytes_per_row)
    count = -(-rows // at_most)
    for index in range(count):
        yield slice(rows * index // count, rows * (index + 1) // count)
