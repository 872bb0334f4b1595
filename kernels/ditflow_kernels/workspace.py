"""How much temporary memory a plain PyTorch pass may hold, and how to split work to fit it."""

from collections.abc import Iterator

MIB = 1 << 20
# cpu: more is not faster (see bench/LOG.md); cuda: an estimate, not measured
WORKSPACE_BYTES = {"cpu": 64 * MIB, "cuda": 256 * MIB}


def workspace_bytes(device_type: str) -> int:
    """Byte budget of one pass on a device of this type."""
    return WORKSPACE_BYTES.get(device_type, WORKSPACE_BYTES["cpu"])


def even_slices(length: int, bytes_each: int, budget: int) -> Iterator[slice]:
    """The fewest, nearly equal slices of `range(length)` of at most `budget` bytes, or else of one item."""
    most = max(1, budget // bytes_each)
    count = -(-length // most)
    for index in range(count):
        yield slice(length * index // count, length * (index + 1) // count)
