"""Progress reports of a job, silent by default: `cli.screen` shows them, `jobs.events` passes them on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np

UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 0))

Preview = Callable[[], "np.ndarray"]  # draws a thumbnail, uint8 [latent frames, height, width, 3]


def quieten_libraries() -> None:
    """Silence the libraries' warnings and progress bars; only their errors are shown.

    What diffusers and transformers warn of is checked by `ditflow.models.tensors` and `ditflow.schema`. The
    hub's client warns of retries; a download that fails in the end is an error.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs when diffusers imports it
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers, huggingface_hub, transformers):
        library.utils.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


@contextmanager
def heard_warnings(hear: Callable[[str], None]) -> Iterator[None]:
    """Call `hear` with each warning that is logged meanwhile, as one line."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: hear(" ".join(record.getMessage().split()))
    logger = logging.getLogger("ditflow")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class Progress:
    """Receives what a job does, and ignores it. Subclasses show it, or raise an error to end the job."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        return None

    def begin(self, folder: Path) -> None:
        """The job's results go to this folder."""

    def phase(self, name: str, steps: int = 0, work: Sequence[float] = ()) -> None:
        """Start a phase; `steps` is 0 if they cannot be counted.

        `work`: how much each step takes, in any unit; empty if all take the same.
        """

    def substep(self) -> None:
        """An optimisation step of a denoising step, or a tile of the autoencoder, is about to begin."""

    def step(self, loss: float | None = None, preview: Preview | None = None) -> None:
        """Finish one step of the phase: the last loss and a preview, if there are."""


def duration(seconds: float) -> str:
    """A duration in the largest unit of which there are two or more: `1.3 seconds`, `80 minutes`."""
    unit, length = next((unit, length) for unit, length in UNITS if seconds >= 2 * length)
    count = seconds / (length or 1)
    return f"{count:.{0 if count >= 10 else 1}f} {unit}"


class Clock:
    """Says how long the rest of a phase takes, from the work done so far."""

    def __init__(self, steps: int, work: Sequence[float] = ()):
        self.work, self.done, self.started = list(work) or [1.0] * steps, 0, time.monotonic()

    def step(self) -> float:
        """Count a finished step; the seconds that the others will take."""
        self.done += 1
        elapsed = time.monotonic() - self.started
        return elapsed * sum(self.work[self.done :]) / sum(self.work[: self.done])
