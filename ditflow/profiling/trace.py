"""Read a Chrome trace of torch.profiler: named ranges, and the work that was requested inside them.

Times are in microseconds.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ditflow.errors import DitflowError
from ditflow.files import regular_file

WORK = {"kernel": "kernels", "gpu_memcpy": "copies", "gpu_memset": "copies"}  # device categories
CALLS = ("cuda_runtime", "cuda_driver")  # host categories; each call has the correlation number of its work
WAITS = "Synchronize"  # in the names of calls that only wait


class Interval(NamedTuple):
    start: float
    end: float


class Range(NamedTuple):
    """A named range, of `ditflow.profiling.ranges` or of other code."""

    name: str
    start: float
    end: float


class Work(NamedTuple):
    """A kernel or a copy or, if no device was recorded, an operator without the operators it calls."""

    name: str
    kind: str  # kernels, copies or host
    asked: float  # time at which the host asked for it
    end: float
    busy: float  # duration


@dataclass(frozen=True)
class Trace:
    """A recorded trace."""

    has_device: bool
    ranges: list[Range]
    work: list[Work]
    device: dict[str, list[Interval]]  # kernels and copies
    host: list[Interval]  # operators and calls, without waits


def read_trace(path: Path) -> Trace:
    """Read a trace file. Raises DitflowError if it is not a Chrome trace."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(regular_file(path), "rt", encoding="utf-8") as file:
            return _trace(json.load(file)["traceEvents"])
    except OSError as error:
        raise DitflowError(f"{path}: {error.strerror or error}; give a trace.json.gz of --profile") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, zlib.error):
        raise DitflowError(f"{path} is not a Chrome trace: give a trace.json.gz of --profile") from None


def _trace(events: list[dict[str, Any]]) -> Trace:
    spans = [event for event in events if event.get("ph") == "X"]
    operators = [event for event in spans if event.get("cat") == "cpu_op"]
    calls = [event for event in spans if event.get("cat") in CALLS]
    on_device = [event for event in spans if event.get("cat") in WORK]
    working = operators + [event for event in calls if WAITS not in event["name"]]
    return Trace(
        has_device=bool(on_device),
        ranges=[
            Range(event["name"], *_interval(event))
            for event in spans
            if event.get("cat") == "user_annotation"
        ],
        work=_device_work(on_device, calls) if on_device else _own_times(operators),
        device={
            kind: [_interval(event) for event in on_device if WORK[event["cat"]] == kind]
            for kind in ("kernels", "copies")
        },
        host=[_interval(event) for event in working],
    )


def _interval(event: dict[str, Any]) -> Interval:
    return Interval(event["ts"], event["ts"] + event["dur"])


def _device_work(on_device: list[dict], calls: list[dict]) -> list[Work]:
    """Kernels and copies, each with the time of the call that asked for it."""
    asked = {event["args"]["correlation"]: event["ts"] for event in calls if "correlation" in event["args"]}
    return [
        Work(
            event["name"],
            WORK[event["cat"]],
            asked.get(event["args"].get("correlation"), event["ts"]),
            event["ts"] + event["dur"],
            event["dur"],
        )
        for event in on_device
    ]


def _own_times(operators: list[dict]) -> list[Work]:
    """Operators, each without the time of the operators it calls."""
    work = []
    threads = sorted(operators, key=lambda event: (str(event["tid"]), event["ts"], -event["dur"]))
    for _, events in groupby(threads, key=lambda event: str(event["tid"])):
        callers: list[list] = []  # [event, time of the operators it calls], innermost last
        for event in events:
            while callers and callers[-1][0]["ts"] + callers[-1][0]["dur"] <= event["ts"]:
                work.append(_own(*callers.pop()))
            if callers:
                callers[-1][1] += event["dur"]
            callers.append([event, 0.0])
        work += [_own(*caller) for caller in callers]
    return work


def _own(event: dict, called: float) -> Work:
    return Work(event["name"], "host", event["ts"], event["ts"] + event["dur"], event["dur"] - called)
