"""Runs a batch: gives jobs to workers until all have ended, and writes its index and its page."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ditflow.batch.jobs import BatchJob
from ditflow.batch.messages import Ended, Message, Ready, Warned
from ditflow.batch.queue import Entry, Queue
from ditflow.batch.worker import CLIPS
from ditflow.errors import DitflowError
from ditflow.files import whole_or_absent
from ditflow.pages.page import report
from ditflow.run_folder.lock import locked
from ditflow.settings import Settings

INDEX, PAGE = "index.csv", "report.html"
COLUMNS = ("job", "folder", "state", "seconds", "error")
LOOK = 0.5  # seconds between two looks for messages
LOST_STARTS = 3  # workers in a row that end before they are ready


class Watch:
    """Receives what happens in a batch, and ignores it. `ditflow.cli.batch_table` shows it."""

    def worker(self, text: str) -> None:
        """Something about a worker."""

    def changed(self, entry: Entry) -> None:
        """A job has another state, or an error."""

    def warned(self, entry: Entry, text: str) -> None:
        """A job has logged a warning."""

    def look(self, queue: Queue) -> None:
        """Called about twice a second."""

    def stopping(self, text: str) -> None:
        """The batch was asked to end, and waits for its running jobs to stop."""


class Workers(Protocol):
    """Workers, counted from 0. `ditflow.batch.cluster` has those of Ray."""

    count: int

    def start(self, worker: int) -> None:
        """Start a worker, also instead of one that is lost. Its first message is Ready."""

    def give(self, worker: int, settings: Settings) -> None:
        """Give a worker that is ready a job, whose last message is an Ended."""

    def stop(self) -> None:
        """Let running jobs end after their current step, and wait until they have."""

    def messages(self, seconds: float) -> Iterable[tuple[int, Message]]:
        """What workers say; waits for it for at most so many seconds."""


def run_batch(
    jobs: Sequence[BatchJob],
    workers: AbstractContextManager[Workers],
    output: Path,  # the batch's folder, which workers must see, locked
    retries: int,
    watch: Watch,
) -> list[Entry]:
    """Run all jobs, and return them in the same order. Workers are opened if any job is unfinished.

    Raises DitflowError if no worker can be started, or if the index or the page cannot be written. However it
    ends, the index and the page are written first; after a KeyboardInterrupt, running jobs end a step first.
    """
    queue = Queue(jobs, retries)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DitflowError(f"{output} cannot be made ({error.strerror}): give another --output") from None
    with locked(output):
        _write_index(queue.entries, output)
        try:
            if not queue.finished:
                with workers as opened:
                    _Loop(queue, opened, output, watch).run()
        finally:
            _write_index(queue.entries, output)
            if done := [entry.job.folder for entry in queue.entries if entry.state == "done"]:
                report(done, output / PAGE)
        shutil.rmtree(output / CLIPS, ignore_errors=True)
    return queue.entries


class _Loop:
    """The workers and the queue between them."""

    def __init__(self, queue: Queue, workers: Workers, output: Path, watch: Watch):
        self.queue, self.workers, self.output, self.watch = queue, workers, output, watch
        self.idle: set[int] = set()  # workers that are ready and have no job
        self.lost_starts = 0  # workers in a row that ended before they were ready

    def run(self) -> None:
        try:
            for worker in range(self.workers.count):
                self.workers.start(worker)
            while not self.queue.finished:
                self._give()
                for worker, message in self.workers.messages(LOOK):
                    self._take(worker, message)
                self.watch.look(self.queue)
        except KeyboardInterrupt as request:
            self._stop()
            done = self.queue.count("done")
            request.add_note(f"{done} of {len(self.queue.entries)} jobs are done; the same command continues")
            raise

    def _stop(self) -> None:
        """End the running jobs. An interrupt comes at any moment, so only their folders say what is done."""
        self.watch.stopping("running jobs end after their current step; Ctrl-C ends them at once")
        try:
            self.workers.stop()
        finally:
            self.queue.stop(time.monotonic())

    def _give(self) -> None:
        for worker in sorted(self.idle):
            if entry := self.queue.take(worker, time.monotonic()):
                self.idle.remove(worker)
                self.workers.give(worker, entry.settings)
                self.watch.changed(entry)

    def _take(self, worker: int, message: Message) -> None:
        if isinstance(message, Ready):
            self.lost_starts = 0
            self.idle.add(worker)
            self.watch.worker(f"worker {worker + 1} of {self.workers.count} is ready on {message.host}")
        elif isinstance(message, Warned):
            self.watch.warned(self.queue.running[worker], message.text)
        elif isinstance(message, Ended):
            self._end(worker, message)
        else:
            self.queue.report(worker, message)

    def _end(self, worker: int, ended: Ended) -> None:
        """The end of a job, or of a worker with or without one."""
        if worker in self.queue.running:
            entry = self.queue.end(worker, ended, time.monotonic())
            _write_index(self.queue.entries, self.output)
            self.watch.changed(entry)
        elif worker not in self.idle:
            self.lost_starts += 1
            if self.lost_starts >= LOST_STARTS and not (self.idle or self.queue.running):
                raise DitflowError(f"no worker can be started: {ended.error}")
        self.idle.discard(worker)
        if ended.worker_lost:
            self.watch.worker(f"worker {worker + 1} is lost: {ended.error}")
            self.workers.start(worker)
        else:
            self.idle.add(worker)


def _write_index(entries: Sequence[Entry], output: Path) -> None:
    """Write index.csv, with a row for each job. Raises DitflowError if it cannot be written."""
    path = output / INDEX
    try:
        with whole_or_absent(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(COLUMNS)
            for entry in entries:
                seconds = f"{entry.seconds:.1f}" if entry.seconds else ""
                lines.writerow([entry.job.number, entry.job.folder, entry.state, seconds, entry.error])
    except OSError as error:
        raise DitflowError(f"{path} cannot be written ({error.strerror}): give another --output") from None
