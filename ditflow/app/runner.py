"""The queue of the page: jobs run one after the other, in a thread of the server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ditflow.errors import Cancelled, DitflowError
from ditflow.progress import heard_warnings

if TYPE_CHECKING:
    import numpy as np

    from ditflow.jobs.events import CancelToken, Event
    from ditflow.jobs.session import Session

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "cancelled", "failed"]
Start = Callable[["Session", "CancelToken"], Iterator["Event"]]
KEPT = 20  # ended jobs that are still listed


@dataclass(eq=False)
class Job:
    """What is asked of a session, and what has become of it."""

    number: int
    kind: str  # transfer, inject, replay or resume
    title: str
    model: str
    start: Start
    folder: Path  # of the run; another name, if that one is taken when it begins
    cancel: threading.Event = field(default_factory=threading.Event)
    state: State = "waiting"
    event: Event | None = None  # the last one
    preview: np.ndarray | None = None  # uint8 [latent frames, height, width, 3]; the last one
    message: str = ""  # how it ended, one line
    warnings: list[str] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")


class Runner:
    """Runs jobs in one thread. The model of the last job stays loaded for the next one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._numbers = 0
        self._closed = False
        self._session: Session | None = None
        self._thread = threading.Thread(target=self._work, name="runner", daemon=True)
        self._thread.start()

    def add(self, kind: str, title: str, model: str, start: Start, folder: Path) -> Job:
        """Put a job at the end of the queue."""
        with self._changed:
            self._numbers += 1
            job = Job(self._numbers, kind, title, model, start, folder)
            ended = [each for each in self._jobs if each.message]
            self._jobs = [each for each in self._jobs if each not in ended[:-KEPT]] + [job]
            self._changed.notify_all()
        return job

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        with self._changed:
            return list(self._jobs)

    def cancel(self, job: Job) -> None:
        """End a job after its current optimisation step, or take it out of the queue."""
        with self._changed:
            job.cancel.set()
            if job.state == "waiting":
                job.state, job.message = "cancelled", "cancelled before it began"
                self._jobs.remove(job)

    def close(self) -> None:
        """Cancel all jobs and wait for the end of the running one, which can be resumed later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for job in self.jobs():
            self.cancel(job)
        self._thread.join()

    def _work(self) -> None:
        while job := self._next():
            self._run(job)

    def _next(self) -> Job | None:
        """The job whose turn it is; waits for one. None if the queue is closed."""

        def first() -> Job | None:
            return next((each for each in self._jobs if each.state == "waiting"), None)

        with self._changed:
            self._changed.wait_for(lambda: self._closed or first())
            if self._closed or not (job := first()):
                return None
            job.state = "running"
            return job

    def _run(self, job: Job) -> None:
        state, message = "done", "done"
        try:
            with heard_warnings(job.warnings.append):
                for event in job.start(self._session_of(job.model), job.cancel):
                    job.event, job.folder = event, event.folder or job.folder
                    if event.preview is not None:
                        job.preview = event.preview
        except Cancelled:
            state, message = "cancelled", "cancelled"
            if job.event and job.event.folder:
                message += "; resume it below"
        except DitflowError as error:
            state, message = "failed", "; ".join([str(error), *getattr(error, "__notes__", [])])
        except Exception as error:  # a fault of this program must not end the queue
            logger.exception("%s of %s failed", job.kind, job.model)
            state, message = "failed", f"unexpected {type(error).__name__}: {error}"
        with self._changed:
            job.state, job.message = state, " ".join(message.split())

    def _session_of(self, model: str) -> Session:
        """The session of a model. That of another model is closed first, to give its memory back."""
        from ditflow.jobs.session import Session

        if self._session is None or self._session.common["model"] != model:
            if self._session:
                self._session.close()
            self._session = Session(model)
        return self._session
