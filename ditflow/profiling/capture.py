"""`--profile steps=2`: profile the last guided and the first plain denoising steps of a run.

Under `profiles/nsys.sh` and `profiles/ncu.sh` an Nsight tool records them, with NVTX ranges; otherwise
torch.profiler does. Neither changes what a run computes.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ditflow.errors import DitflowError, SettingsError
from ditflow.files import whole_or_absent
from ditflow.profiling import ranges

logger = logging.getLogger(__name__)

TOOL = "DITFLOW_PROFILER"  # environment variable in which the scripts name the profiler
FOLDER = "profile"  # in the run folder
TRACE, MEMORY, OPERATORS = "trace.json.gz", "memory.csv", "operators.txt"
ROWS = 40  # in the operator table
DEVICES = {0: "cpu", 1: "cuda"}  # torch's numbers in a trace


@dataclass(frozen=True)
class Request:
    """How many guided and how many plain steps to capture, and the profiler."""

    steps: int
    tool: Literal["torch", "nsight"] = "torch"

    @classmethod
    def read(cls, text: str) -> Request:
        """From the value of `--profile` and the environment. Raises SettingsError."""
        found = re.fullmatch(r"steps=(\d{1,4})", text)
        if not found or not int(found[1]):
            raise SettingsError(
                f"--profile: {text!r} given; accepted: steps=N with N from 1 to 9999, for N guided and N "
                "plain steps, such as steps=2"
            )
        tool = os.environ.get(TOOL, "torch")
        if tool not in ("torch", "nsight"):
            raise SettingsError(
                f"{TOOL}: {tool!r} given; accepted: torch or nsight; unset it (profiles/*.sh set it)"
            )
        return cls(int(found[1]), tool)


def profiled(job: Callable, request: Request) -> Callable:
    """The same job with the request captured. Raises DitflowError if the profiler cannot be used."""

    def capturing(settings: Any, progress: Any) -> Any:
        capture = (NsightCapture if request.tool == "nsight" else TorchCapture)(request.steps)
        with ranges.observed_by(capture):
            run = job(settings, progress)
        capture.write(run.folder)
        return run

    return capturing


class StepCapture:
    """Captures some denoising steps with a profiler. Implements `ditflow.profiling.ranges.Observer`."""

    range: Callable[[str], AbstractContextManager]

    def __init__(self, count: int):
        self.count = count

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Write what was captured to a run folder."""
        raise NotImplementedError

    def steps(self, indices: range, guided: int) -> Iterable[int]:
        """Yield all steps; capture the last `count` guided ones, warm by then, and `count` plain ones."""
        first, end = guided - self.count, guided + self.count
        yield from (index for index in indices if index < first)
        if wanted := [index for index in indices if first <= index < end]:
            with self._running():
                yield from wanted
        yield from (index for index in indices if index >= end)

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.start()
        try:
            with self.range("phase/denoise"):  # opened again: the phase began before the capture
                yield
        finally:
            self.stop()


class TorchCapture(StepCapture):
    """torch.profiler: writes a trace, memory over time and an operator table to the run folder."""

    def __init__(self, count: int):
        super().__init__(count)
        from torch.profiler import record_function

        self.range = record_function
        self.profiler = None

    def start(self) -> None:
        from torch.profiler import profile, supported_activities

        self.profiler = profile(activities=supported_activities(), profile_memory=True, acc_events=True)
        self.profiler.start()

    def stop(self) -> None:
        self.profiler.stop()  # waits for the device

    def write(self, folder: Path) -> None:
        with whole_or_absent(folder / FOLDER) as unfinished:
            unfinished.mkdir()
            self.profiler.export_chrome_trace(str(unfinished / TRACE))
            write_memory(unfinished / TRACE, unfinished / MEMORY)
            (unfinished / OPERATORS).write_text(self._operators(), encoding="utf-8")
        logger.info("profile: %s (trace, memory, operators)", folder / FOLDER)

    def _operators(self) -> str:
        import torch

        busy = "device" if torch.cuda.is_available() else "cpu"
        averages = self.profiler.key_averages()
        return averages.table(f"self_{busy}_time_total", row_limit=ROWS, max_name_column_width=60) + "\n"


class NsightCapture(StepCapture):
    """An Nsight tool that watches this process: gives it NVTX ranges, and starts and stops its recording.

    Raises DitflowError without a GPU or without the package nvtx.
    """

    def __init__(self, count: int):
        super().__init__(count)
        import torch

        if not torch.cuda.is_available():
            raise DitflowError(
                "--profile under an Nsight tool needs a CUDA GPU, and this machine has none: to use "
                "torch.profiler, run the command without profiles/nsys.sh or profiles/ncu.sh"
            )
        try:
            from nvtx import annotate
        except ImportError:
            raise DitflowError(
                '--profile under an Nsight tool needs the package nvtx: pip install "ditflow[profile]"'
            ) from None
        self.cuda, self.range = torch.cuda, partial(annotate, domain="ditflow")

    def start(self) -> None:
        self.cuda.synchronize()
        self.cuda.profiler.start()

    def stop(self) -> None:
        self.cuda.synchronize()
        self.cuda.profiler.stop()

    def write(self, folder: Path) -> None:
        """Do nothing: the Nsight tool writes a report, and its script moves that to the run folder."""


def write_memory(trace: Path, path: Path) -> None:
    """Write the allocations in a trace as CSV: milliseconds, device, allocated bytes.

    On a CPU, bytes are relative to the first captured step, so they can be negative.
    """
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["milliseconds", "device", "allocated_bytes"])
        for event in events:
            found = event["args"]
            device = DEVICES.get(found["Device Type"], found["Device Type"])
            milliseconds = (event["ts"] - events[0]["ts"]) / 1000
            writer.writerow([f"{milliseconds:.3f}", device, found["Total Allocated"]])
