"""Progress, log messages and tables on a terminal, drawn by rich, or as plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.segment import Segment

from ditflow.cli.terminal import clean, one_line, styled
from ditflow.progress import Clock, Preview, Progress


class CleanConsole(Console):
    """A console on which only rich's own escapes reach the terminal: those in a text are escaped."""

    def __init__(self, stderr: bool = False, **options: Any):
        super().__init__(file=styled(sys.stderr if stderr else sys.stdout), highlight=False, **options)

    def render(self, *given: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*given, **options):
            yield segment if segment.control else Segment(clean(segment.text, strict=True), segment.style)


class ScreenProgress(Progress):
    """Progress bars with losses and time left, on standard error."""

    def __init__(self):
        self.console = CleanConsole(stderr=True, soft_wrap=True)
        self.bars = Bars(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self.console,
        )
        self.current, self.clock = None, Clock(0)

    def __exit__(self, failure, *_) -> None:
        if failure is None:
            self._finish()
        if self.bars.live.is_started:
            self.bars.stop()

    def phase(self, name: str, steps: int = 0, work: Sequence[float] = ()) -> None:
        self.bars.start()
        self._finish()
        self.current = self.bars.add_task(name, total=max(steps, 1), detail="")
        self.clock = Clock(steps, work)

    def step(self, loss: float | None = None, preview: Preview | None = None) -> None:
        self.bars.update(self.current, advance=1, detail=_detail(self.clock.step(), loss))

    def log(self, record: logging.LogRecord) -> None:
        """Print a log record above the bars; warnings are marked."""
        self.console.print(_line(record), style="yellow" if _warns(record) else None, markup=False)

    def _finish(self) -> None:
        if self.current is not None:
            total = self.bars.tasks[self.current].total
            self.bars.update(self.current, completed=total, detail="")
            self.current = None


class LineProgress(Progress):
    """A line for each phase and each step on standard error, for a file or another program."""

    def phase(self, name: str, steps: int = 0, work: Sequence[float] = ()) -> None:
        self.name, self.steps, self.clock = name, steps, Clock(steps, work)
        if not steps:
            _print(name)

    def step(self, loss: float | None = None, preview: Preview | None = None) -> None:
        detail = _detail(self.clock.step(), loss)
        _print(f"{self.name} {self.clock.done}/{self.steps}: {detail}")

    def log(self, record: logging.LogRecord) -> None:
        """Print a log record; warnings are marked."""
        _print(_line(record))


def _print(line: str) -> None:
    print(one_line(line), file=sys.stderr)


def _detail(seconds_left: float, loss: float | None) -> str:
    left = f"{timedelta(seconds=round(seconds_left))} left"
    return left if loss is None else f"loss {loss:.4f}, {left}"


def _warns(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _line(record: logging.LogRecord) -> str:
    message = one_line(record.getMessage())
    return f"warning: {message}" if _warns(record) else message


class LineHandler(logging.StreamHandler):
    """Prints each warning on a line of standard error."""

    def format(self, record: logging.LogRecord) -> str:
        return f"ditflow: warning: {one_line(record.getMessage())}"
