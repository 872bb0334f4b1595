"""Measures the seconds and peak memory of each phase of a job."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ditflow.profiling import ranges
from ditflow.progress import Progress


class Meter:
    """Measures phases. `phases` maps each name to its seconds and peak bytes.

    On a GPU the peak is what torch allocated. On a CPU it is the resident set of the whole process, including
    weights and libraries, or None if the system does not report it.
    """

    def __init__(self, device: torch.device, progress: Progress):
        self.device, self.progress = device, progress
        self.phases: dict[str, dict[str, float | int | None]] = {}

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @contextmanager
    def phase(self, name: str, steps: int = 0, work: Sequence[float] = ()) -> Iterator[None]:
        """Announce and measure a phase (see `Progress.phase`)."""
        self.progress.phase(name, steps, work)
        self._reset_peak()
        started = time.perf_counter()
        with ranges.phase(name):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.phases[name] = {"seconds": round(time.perf_counter() - started, 3), "peak_bytes": self._peak()}

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # if this fails, the peak is that of the run so far
                Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak resident set

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with suppress(OSError):  # only Linux has the file
            if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
                return int(found[1]) * 1024
        return None
