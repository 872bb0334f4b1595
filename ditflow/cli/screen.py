"""Progress bars, log messages and tables on a terminal, drawn by rich."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.segment import Segment

from ditflow.cli.terminal import clean, one_line, styled
from ditflow.progress import Progress


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
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self.console,
        )
        self.current = None

    def __exit__(self, failure, *_) -> None:
        if failure is None:
            self._finish()
        if self.bars.live.is_started:
            self.bars.stop()

    def phase(self, name: str, steps: int = 0) -> None:
        self.bars.start()
        self._finish()
        self.current = self.bars.add_task(name, total=max(steps, 1), detail="")

    def step(self, detail: str) -> None:
        self.bars.update(self.current, advance=1, detail=one_line(detail))

    def log(self, record: logging.LogRecord) -> None:
        """Print a log record above the bars; warnings are marked."""
        warns, message = record.levelno >= logging.WARNING, one_line(record.getMessage())
        text = f"warning: {message}" if warns else message
        self.console.print(text, style="yellow" if warns else None, markup=False)

    def _finish(self) -> None:
        if self.current is not None:
            total = self.bars.tasks[self.current].total
            self.bars.update(self.current, completed=total)
            self.current = None


class LineHandler(logging.StreamHandler):
    """Prints each warning on a line of standard error."""

    def format(self, record: logging.LogRecord) -> str:
        return f"ditflow: warning: {one_line(record.getMessage())}"
