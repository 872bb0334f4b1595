"""A batch on the screen: a live table on a terminal, or a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ditflow.batch.queue import Entry, Queue
from ditflow.batch.run import Watch
from ditflow.cli.screen import CleanConsole
from ditflow.cli.terminal import one_line

STATES = ("done", "running", "waiting", "failed")
COLUMNS = {  # `left` is the phase's
    "worker": "right",
    "job": "right",
    "folder": "left",
    "phase": "left",
    "step": "right",
    "seconds": "right",
    "left": "right",
}


@contextmanager
def shown_batch(quiet: bool) -> Iterator[Watch]:
    """What shows a batch on standard error; if `quiet`, only its failures and warnings."""
    if quiet or not sys.stderr.isatty():
        yield Lines(quiet)
        return
    console = CleanConsole(stderr=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        table = LiveTable(console, live)
        try:
            yield table
        finally:
            table.end()


class Lines(Watch):
    """A line for each change."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    def worker(self, text: str) -> None:
        if not self.quiet:
            self.print(text)

    def changed(self, entry: Entry) -> None:
        if entry.state == "failed" or not self.quiet:
            self.print(_line(entry))

    def warned(self, entry: Entry, text: str) -> None:
        self.print(f"job {entry.job.number}: warning: {text}")

    def stopping(self, text: str) -> None:
        if not self.quiet:
            self.print(text)

    def print(self, text: str) -> None:
        print(one_line(text), file=sys.stderr)


class LiveTable(Lines):
    """The running jobs in a table that changes in place, below a line for each try that has ended."""

    def __init__(self, console: CleanConsole, live: Live):
        super().__init__()
        self.console, self.live = console, live

    def changed(self, entry: Entry) -> None:
        if entry.state != "running":
            super().changed(entry)

    def stopping(self, text: str) -> None:
        self.end()  # shows the cursor again, which another Ctrl-C would not
        super().stopping(text)

    def end(self) -> None:
        self.live.update("")  # a table longer than the screen would stay
        self.live.stop()

    def print(self, text: str) -> None:
        self.console.print(one_line(text), markup=False)

    def look(self, queue: Queue) -> None:
        self.live.update(batch_table(queue, time.monotonic()), refresh=True)


def batch_table(queue: Queue, now: float) -> Group:
    """How many jobs are in each state, and those that run. The last are left out if they do not fit."""
    counts = ", ".join(f"{queue.count(state)} {state}" for state in STATES)
    summary = Text(f"{len(queue.entries)} jobs: {counts}")
    if not queue.running:
        return Group(summary)
    table = Table(box=None, pad_edge=False)
    for name, side in COLUMNS.items():
        table.add_column(name, justify=side, no_wrap=name != "folder")  # the folder is what becomes narrower
    for worker, entry in sorted(queue.running.items()):
        event = entry.event
        steps = f"{event.step}/{event.steps}" if event and event.steps else ""
        left = event and event.seconds_left
        table.add_row(
            *(str(worker + 1), str(entry.job.number), Text(entry.job.folder.name, no_wrap=True)),
            *(event.phase if event else "starting", steps, f"{now - entry.started:.0f}"),
            "" if left is None else str(timedelta(seconds=round(left))),
        )
    return Group(summary, table)


def _line(entry: Entry) -> str:
    """What has become of a job."""
    name = f"job {entry.job.number} ({_name(entry.job.folder)})"
    if entry.state == "running":
        return f"{name}: running"
    if entry.state == "done":
        return f"{name}: done in {entry.seconds:.1f} s"
    again = ", will be tried again" if entry.state == "waiting" else ""
    return f"{name}: failed{again}: {entry.error}"


def _name(folder: Path) -> str:
    """A folder as its user named it: relative to the current one, if it is in that."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
