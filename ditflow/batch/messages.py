"""What a worker says of its job, besides the events of `ditflow.jobs.events`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ditflow.jobs.events import Event


class Ending(Enum):
    """How a try of a job ended."""

    DONE = "done"
    FAILED = "failed"  # and would fail again
    AGAIN = "again"  # failed, and may succeed the next time
    MEMORY = "out of memory"
    IN_USE = "in use"  # another process works in the run folder


@dataclass(frozen=True)
class Ready:
    """The worker has started."""

    host: str


@dataclass(frozen=True)
class Warned:
    """The job has logged a warning."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The try is over, or, without a job, the worker."""

    ending: Ending
    error: str = ""
    worker_lost: bool = False


Message = Ready | Event | Warned | Ended
