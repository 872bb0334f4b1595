"""All contests."""

from bench.timed.operations import operations
from bench.timed.pieces import pieces

CONTESTS = [*operations(), *pieces()]
