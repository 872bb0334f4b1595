"""Progress reports of a running job: silent by default, or as bars on a terminal."""

from __future__ import annotations

import logging
from typing import Self


def quieten_libraries() -> None:
    """Silence the libraries' warnings and progress bars; only their errors are shown."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs when diffusers imports it
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


class Progress:
    """Receives phases and steps and ignores them. Subclasses show them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        return None

    def phase(self, name: str, steps: int = 0) -> None:
        """Start a phase; `steps` is 0 if they cannot be counted."""

    def step(self, detail: str) -> None:
        """Finish one step of the phase."""


class ScreenProgress(Progress):
    """Progress bars with losses and time left, on standard error."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars = Bars(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
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
        self.bars.update(self.current, advance=1, detail=detail)

    def log(self, record: logging.LogRecord) -> None:
        """Print a log record above the bars; warnings are marked."""
        warns = record.levelno >= logging.WARNING
        text = f"warning: {record.getMessage()}" if warns else record.getMessage()
        self.console.print(text, style="yellow" if warns else None, markup=False)

    def _finish(self) -> None:
        if self.current is not None:
            total = self.bars.tasks[self.current].total
            self.bars.update(self.current, completed=total)
            self.current = None
