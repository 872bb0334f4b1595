"""The jobs of a batch: which one a worker gets next, and what becomes of one that has failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ditflow.batch.jobs import BatchJob
from ditflow.batch.messages import Ended, Ending
from ditflow.errors import DitflowError
from ditflow.jobs.events import Event
from ditflow.memory.presets import PRESETS
from ditflow.run_folder.run import Run
from ditflow.settings import Settings

State = Literal["waiting", "running", "done", "failed"]
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a job is tried again; it doubles with every try
IN_USE_PAUSE = 10.0  # seconds before a run folder in use is looked at again


@dataclass
class Entry:
    """A job and its state."""

    job: BatchJob
    state: State = "waiting"
    settings: Settings = field(init=False)  # of the next try
    seconds: float = 0.0  # of all tries
    error: str = ""  # of the last try
    failures: int = 0  # tries that have failed, since the last one that finished a step
    steps: int = 0  # denoising steps that any try has finished
    event: Event | None = None  # the last of the running try
    started: float = 0.0  # when the running try did
    not_before: float = 0.0  # when the next try may start
    advanced: bool = False  # whether the running try has finished a step that no other had

    def __post_init__(self) -> None:
        self.settings = self.job.settings
        self.state = "done" if self.job.finished else "waiting"

    @property
    def model(self) -> tuple:
        """Equal for jobs that load the same parts of a model."""
        return self.settings.model, self.settings.dtype, self.settings.weights, self.settings.lora

    @property
    def texts(self) -> set[tuple]:
        """The texts to encode, each with what encodes it."""
        given = self.settings
        texts = given.prompt, given.negative_prompt, given.source_prompt
        return {(given.model, given.dtype, text) for text in texts}

    @property
    def clips(self) -> set[tuple]:
        """The clip to encode, if there is one, with what its latents depend on."""
        given = self.settings
        encoder = given.model, given.dtype, given.compute, given.deterministic
        chosen = given.video, given.start, given.stride, given.fps, given.frames, given.size, given.fit
        return {(*encoder, *chosen)} if given.has_clip else set()


class Queue:
    """The jobs of a batch in the order of their file. Times are in seconds, of any clock."""

    def __init__(self, jobs: Sequence[BatchJob], retries: int):
        self.entries = [Entry(job) for job in jobs]
        self.retries = retries
        self.running: dict[int, Entry] = {}  # by worker
        self.models: dict[int, tuple] = {}  # what each worker has loaded
        self.encoded: set[tuple] = set()  # texts and clips that need not be encoded again

    @property
    def finished(self) -> bool:
        return all(entry.state in ("done", "failed") for entry in self.entries)

    def count(self, state: State) -> int:
        return sum(entry.state == state for entry in self.entries)

    def take(self, worker: int, now: float) -> Entry | None:
        """Start the first job with the model that a worker has, else the first one; None if none may start.

        A text or a clip that another worker is encoding is waited for.
        """
        encoding = set().union(*map(_encoding, self.running.values())) - self.encoded
        free = [
            entry
            for entry in self.entries
            if entry.state == "waiting"
            and entry.not_before <= now
            and encoding.isdisjoint(entry.texts | entry.clips)
        ]
        if not free:
            return None
        entry = next((each for each in free if each.model == self.models.get(worker)), free[0])
        entry.state, entry.started, entry.event, entry.advanced = "running", now, None, False
        self.running[worker], self.models[worker] = entry, entry.model
        return entry

    def report(self, worker: int, event: Event) -> None:
        """Take note of an event of a worker's job."""
        entry = self.running[worker]
        entry.event = event
        self.encoded |= (entry.texts | entry.clips) - _encoding(entry)
        if event.phase == "denoise" and event.step > entry.steps:
            entry.steps, entry.advanced = event.step, True

    def end(self, worker: int, ended: Ended, now: float) -> Entry:
        """End a worker's job, or let it wait for its next try."""
        entry = self.running.pop(worker)
        entry.seconds += now - entry.started
        entry.error = ended.error
        if ended.worker_lost:
            self.models.pop(worker)
        if ended.ending in (Ending.DONE, Ending.FAILED):
            entry.state = ended.ending.value
            return entry
        if ended.ending is Ending.IN_USE:  # by a user, or by a node that is gone, whose lock will expire
            entry.state, entry.not_before = "waiting", now + IN_USE_PAUSE
            return entry
        entry.failures = 1 if entry.advanced else entry.failures + 1
        if entry.failures > self.retries:
            entry.state = "failed"
            return entry
        if ended.ending is Ending.MEMORY:
            entry.settings = replace(entry.settings, preset=_smaller_preset(entry))
        entry.state = "waiting"
        entry.not_before = now + min(FIRST_PAUSE * 2 ** (entry.failures - 1), LONGEST_PAUSE)
        return entry

    def stop(self, now: float) -> None:
        """The workers have stopped: a running job is done if its folder says so, else it waits."""
        for entry in self.entries:
            if entry.state == "running":
                entry.seconds += now - entry.started
                entry.state = "done" if _is_finished(entry.job.folder) else "waiting"
        self.running.clear()


def _is_finished(folder: Path) -> bool:
    try:
        return Run.open(folder).finished
    except DitflowError:  # it has not begun
        return False


def _encoding(entry: Entry) -> set[tuple]:
    """What a running job may still have to encode: its texts, then its clip."""
    phase = entry.event.phase if entry.event else ""
    if phase in ("", "text"):
        return entry.texts | entry.clips
    return entry.clips if phase == "encode" else set()


def _smaller_preset(entry: Entry) -> str:
    """The next smaller memory preset than that of the failed try, as its folder says; the smallest stays."""
    try:
        failed = Run.open(entry.job.folder).settings().preset
    except DitflowError:  # it has failed before it had a folder
        failed = entry.settings.preset
    return PRESETS[max(0, PRESETS.index(failed) - 1)] if failed in PRESETS else failed
