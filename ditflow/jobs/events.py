"""What a program sees of a running job: events, and a way to cancel it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event as Flag
from threading import Thread
from typing import Protocol, TypeVar

import numpy as np

from ditflow.errors import Cancelled
from ditflow.progress import Clock, Preview, Progress

Result = TypeVar("Result")


@dataclass(frozen=True)
class Event:
    """Where a job is: sent when a phase begins, before each optimisation step, and after each step."""

    phase: str  # text, encode, denoise or decode
    step: int = 0  # steps of the phase that are done
    steps: int = 0  # of the phase; 0 if they cannot be counted
    substep: int = 0  # optimisation steps begun in the current step, or tiles begun in the phase
    loss: float | None = None  # the last of the last step that had one
    seconds_left: float | None = None  # of the phase, from the steps done so far
    preview: np.ndarray | None = None  # uint8 [latent frames, height, width, 3], one pixel a latent pixel
    folder: Path | None = None  # of the run, once it exists


class CancelToken(Protocol):
    """Such as a `threading.Event`."""

    def is_set(self) -> bool: ...


class EventProgress(Progress):
    """Makes an event of each report, and ends the job when it is cancelled.

    Raises Cancelled in the job.
    """

    def __init__(
        self,
        send: Callable[[Event], None],
        cancels: Sequence[CancelToken] = (),
        preview_every: int = 0,  # steps; 0: no previews
    ):
        self.send, self.cancels, self.preview_every = send, cancels, preview_every
        self.folder: Path | None = None
        self.loss = self.seconds_left = None
        self.name, self.steps, self.substeps, self.clock = "", 0, 0, Clock(0)

    def begin(self, folder: Path) -> None:
        self.folder = folder

    def phase(self, name: str, steps: int = 0, work: Sequence[float] = ()) -> None:
        self.name, self.steps, self.substeps, self.clock = name, steps, 0, Clock(steps, work)
        self.seconds_left = None
        self._report()

    def substep(self) -> None:
        self.substeps += 1
        self._report()

    def step(self, loss: float | None = None, preview: Preview | None = None) -> None:
        self.substeps, self.seconds_left = 0, self.clock.step()
        self.loss = self.loss if loss is None else loss
        wanted = preview and self.preview_every and self.clock.done % self.preview_every == 0
        self._report(preview() if wanted else None)

    def _report(self, preview: np.ndarray | None = None) -> None:
        done = self.name, self.clock.done, self.steps, self.substeps
        self.send(Event(*done, self.loss, self.seconds_left, preview, self.folder))
        if any(cancel.is_set() for cancel in self.cancels):
            raise Cancelled("cancelled")


def events_of(
    work: Callable[[Progress], Result],
    finish: Callable[[Result], None],
    cancel: CancelToken | None,
    preview_every: int,
) -> Iterator[Event]:
    """Do `work` in a thread and yield its events; at the end call `finish` with its result.

    Raises what `work` raises. If the iterator is closed, or an interrupt comes, the work is cancelled.
    """
    queue: SimpleQueue[Event | None] = SimpleQueue()
    closed, outcome = Flag(), []
    cancels = [closed, *([cancel] if cancel else [])]

    def run() -> None:
        try:
            outcome.append((work(EventProgress(queue.put, cancels, preview_every)), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            queue.put(None)

    thread = Thread(target=run, name="job")
    thread.start()
    try:
        while (event := queue.get()) is not None:
            yield event
    finally:
        closed.set()
        thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    finish(result)
