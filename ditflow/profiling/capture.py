"""`--profile steps=2`: the last guided and the first plain steps of a run, as a profiler sees them.

Under `profiles/nsys.sh` and `profiles/ncu.sh` an Nsight tool is told where the steps begin and end, with NVTX
ranges; otherwise torch.profiler records them. Neither has any part in what a run computes.
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

TOOL = "DITFLOW_PROFILER"  # the environment variable by which the scripts say who looks
FOLDER = "profile"  # in the run folder
TRACE, MEMORY, OPERATORS = "trace.json.gz", "memory.csv", "operators.txt"
ROWS = 40  # of the table of operators
DEVICES = {0: "cpu", 1: "cuda"}  # as torch numbers them in a trace


@dataclass(frozen=True)
class Request:
    """What to capture: so many guided and as many plain steps, and who looks."""

    steps: int
    tool: Literal["torch", "nsight"] = "torch"

    @classmethod
    def read(cls, words: str) -> Request:
        """From the words after `--profile` and the environment; raises SettingsError."""
        found = re.fullmatch(r"steps=(\d{1,4})", words)
        if not found or not int(found[1]):
            raise SettingsError(
                f"--profile: {words!r} given; accepted: steps=N with N from 1 to 9999, for N guided and N "
                "plain steps, such as steps=2"
            )
        tool = os.environ.get(TOOL, "torch")
        if tool not in ("torch", "nsight"):
            raise SettingsError(
                f"{TOOL}: {tool!r} given; accepted: torch or nsight; unset it, profiles/nsys.sh sets it"
            )
        return cls(int(found[1]), tool)


def profiled(job: Callable, request: Request) -> Callable:
    """The same job, with what was asked for captured; raises DitflowError where the tool cannot be used."""

    def capturing(settings: Any, progress: Any) -> Any:
        capture = (NsightCapture if request.tool == "nsight" else TorchCapture)(request.steps)
        with ranges.observed_by(capture):
            run = job(settings, progress)
        capture.write(run.folder)
        return run

    return capturing


class Capture:
    """Implements `ditflow.profiling.ranges.Observer`: a profiler that looks at some denoising steps."""

    range: Callable[[str], AbstractContextManager]

    def __init__(self, count: int):
        self.count = count

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Leave what was captured in a run folder."""
        raise NotImplementedError

    def steps(self, indices: range, guided: int) -> Iterable[int]:
        """The last `count` guided steps, warm by then, and the first `count` plain ones are captured."""
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
            with self.range("phase/denoise"):  # again: it began before anybody looked
                yield
        finally:
            self.stop()


class TorchCapture(Capture):
    """torch.profiler: a trace, memory over time and a table of operators in the run folder."""

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


class NsightCapture(Capture):
    """An Nsight tool around this process: NVTX ranges, and the CUDA profiler's start and stop.

    Raises DitflowError where there is no GPU, or no package nvtx.
    """

    def __init__(self, count: int):
        super().__init__(count)
        import torch

        if not torch.cuda.is_available():
            raise DitflowError(
                "--profile under an Nsight tool needs a CUDA GPU, and there is none here; without "
                "profiles/nsys.sh and profiles/ncu.sh it uses torch.profiler"
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
        """Nothing: the tool writes its own report, and its script puts that into the run folder."""


def write_memory(trace: Path, path: Path) -> None:
    """Memory over time, from the allocations in a trace, as CSV: milliseconds, device, allocated bytes.

    On a CPU, bytes are counted from the first captured step on, and may so be negative.
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
