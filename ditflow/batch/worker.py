"""A worker: runs one job after the other in its process, and keeps their model loaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event as Flag
from threading import Lock
from typing import TYPE_CHECKING

from ditflow.batch.messages import Ended, Ending, Ready, Warned
from ditflow.errors import DitflowError, TemporaryError, first_line
from ditflow.progress import heard_warnings, quieten_libraries
from ditflow.run_folder.lock import InUse, locked

if TYPE_CHECKING:
    from ditflow.jobs.events import Event
    from ditflow.settings import Settings

CLIPS = ".clips"  # encoded, in the batch's folder


class Worker:
    """An actor of Ray with two threads: `stop` is called while `run` runs.

    Its heavy imports come with `ready`, whose errors reach the batch.
    """

    def __init__(self):
        self.stopping, self.working = Flag(), Lock()

    def ready(self, folder: str, threads: int) -> Ready:
        """Load what jobs need.

        Raises DitflowError if this machine does not share `folder`, which the batch has locked.
        """
        check_shared(Path(folder))
        import torch

        from ditflow.batch.clips import SharedClips
        from ditflow.jobs.session import Session

        quieten_libraries()
        torch.set_num_threads(max(1, threads))
        self.session = Session()
        self.session.kept = SharedClips(Path(folder) / CLIPS)
        return Ready(socket.gethostname())

    def run(self, settings: Settings) -> Iterator[Event | Warned | Ended]:
        """Make sure that the run of these settings exists in its folder.

        The last message is an Ended, unless `stop` has ended the run.
        """
        last, warned = None, []
        with self.working, heard_warnings(warned.append):
            try:
                with closing(self.session.ensure(settings, settings.output)) as events:
                    for event in events:
                        yield from _taken(warned)
                        if last != (last := (event.phase, event.step)):
                            yield event
                        if self.stopping.is_set() and not event.substep:
                            return
                ended = Ended(Ending.DONE)
            except Exception as error:
                ended = Ended(_ending(error), _text(error))
        yield from _taken(warned)
        yield ended

    def stop(self) -> None:
        """Let the run end after its current step, and return when its state is on disk."""
        self.stopping.set()
        with self.working:
            pass


def check_shared(folder: Path) -> None:
    """Raises DitflowError unless this machine sees the folder, which is locked, and that it is locked."""
    try:
        with locked(folder):
            pass
    except InUse:
        return
    raise DitflowError(
        f"{folder} on {socket.gethostname()} is another folder, or locks do not reach it: put the batch on a "
        "file system that all nodes share, with locks (docs/batch.md)"
    )


def _ending(error: Exception) -> Ending:
    from ditflow.memory.capacity import ran_out

    if isinstance(error, InUse):
        return Ending.IN_USE
    if ran_out(error) or isinstance(error, MemoryError):
        return Ending.MEMORY
    if isinstance(error, TemporaryError) or not isinstance(error, DitflowError):
        return Ending.AGAIN
    return Ending.FAILED


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, DitflowError) else f"{type(error).__name__}: {first_line(error)}"


def _taken(texts: list[str]) -> Iterator[Warned]:
    while texts:
        yield Warned(texts.pop(0))
