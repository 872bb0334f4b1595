"""Workers on Ray: actors on this machine or on a cluster, one for each GPU or several on CPUs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ditflow.batch.messages import Ended, Ending, Message, Warned
from ditflow.batch.worker import Worker
from ditflow.errors import DitflowError
from ditflow.jobs.events import Event
from ditflow.settings import Settings

LONGEST = 400  # characters of Ray's message
LOCAL = {  # environment of a Ray of this machine alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as a run without Ray has it
}
STORE_BYTES = 1 << 27  # of Ray's object store on this machine: messages are small, results are files


def import_ray() -> Any:
    """Ray. Raises DitflowError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise DitflowError(f'a batch needs Ray ({error}): pip install "ditflow[batch]"') from None
    return ray


class Cluster:
    """The workers of a batch. As a context manager, it connects to Ray, and ends the workers at the end.

    Raises DitflowError if Ray cannot be reached.
    """

    def __init__(self, folder: Path, workers: int | None, address: str | None, on_gpus: bool):
        self.ray = import_ray()
        self.folder, self.wanted, self.address, self.on_gpus = folder, workers, address, on_gpus
        self.actors: dict[int, Any] = {}
        self.pending: dict[Any, int] = {}  # worker by what it will say

    def __enter__(self) -> Self:
        try:
            self._connect()
        except Exception as error:  # Ray raises many types
            where = f"at {self.address} " if self.address else ""
            raise DitflowError(f"Ray {where}cannot be used: {_short(error)}") from None
        resources, nodes = self.ray.cluster_resources(), self.ray.nodes()
        gpus, processors = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.gpus = gpus if self.on_gpus else 0  # a worker on a CPU sees none
        alive = sum(node["Alive"] for node in nodes)
        self.count = min(self.wanted or gpus, gpus) if self.gpus else self.wanted or alive
        threads = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(threads) if threads.isdigit() else processors // self.count
        return self

    def _connect(self) -> None:
        """Start a Ray of this machine alone, or connect to that at the address."""
        quiet = {"log_to_driver": False, "configure_logging": False}
        own = {}
        if not self.address:
            os.environ |= LOCAL
            processors = max(os.cpu_count() or 1, self.wanted or 1)
            own = {"num_cpus": processors, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        with _sigterm_kept():
            self.ray.init(self.address or "local", **own, **quiet)

    def __exit__(self, *_: object) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor)
        self.ray.shutdown()

    def start(self, worker: int) -> None:
        if worker in self.actors:
            self.ray.kill(self.actors[worker])  # only its connection may have been lost
        needs = {"num_cpus": 1, "num_gpus": 1 if self.gpus else 0}
        remote = self.ray.remote(Worker).options(**needs, scheduling_strategy="SPREAD", max_concurrency=2)
        self.actors[worker] = actor = remote.remote()
        self.pending[actor.ready.remote(str(self.folder), self.threads)] = worker

    def give(self, worker: int, settings: Settings) -> None:
        stream = self.actors[worker].run.options(num_returns="streaming").remote(settings)
        self.pending[stream] = worker

    def stop(self) -> None:
        starts = self.ray.ObjectRef
        busy = [worker for source, worker in self.pending.items() if not isinstance(source, starts)]
        stopped = [self.actors[worker].stop.remote() for worker in busy]
        if stopped:
            self.ray.wait(stopped, num_returns=len(stopped))  # a worker that dies has stopped, too

    def messages(self, seconds: float) -> Iterator[tuple[int, Message]]:
        if not self.pending:  # all workers are idle until a job may be tried again
            time.sleep(seconds)
            return
        waiting = list(self.pending)
        self.ray.wait(waiting, num_returns=1, timeout=seconds)
        heard, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for source in heard:
            worker = self.pending[source]
            message = self._message(source)
            if not isinstance(message, Event | Warned):
                self.pending.pop(source)
            yield worker, message

    def _message(self, source: Any) -> Message:
        """The next message of a worker's job, or the only one of its start."""
        errors, starts = self.ray.exceptions, isinstance(source, self.ray.ObjectRef)
        try:
            return self.ray.get(source if starts else next(source))
        except errors.RayTaskError as error:
            if starts and isinstance(error.cause, DitflowError):
                raise DitflowError(f"a worker cannot start: {_short(error.cause)}") from None
            return Ended(Ending.AGAIN, _short(error.cause), worker_lost=starts)
        except errors.OutOfMemoryError as error:
            ending = Ending.AGAIN if self.gpus else Ending.MEMORY  # smaller presets take more host memory
            return Ended(ending, f"its worker was ended: {_short(error)}", worker_lost=True)
        except errors.RayError as error:
            return Ended(Ending.AGAIN, f"its worker died: {_short(error)}", worker_lost=True)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep Ray from handling SIGTERM: Python code of Ray would exit without a word, native code abort."""
    real, handler = signal.signal, signal.getsignal(signal.SIGTERM)
    signal.signal = lambda number, new: None if number == signal.SIGTERM else real(number, new)
    try:
        yield
    finally:
        signal.signal = real
        signal.signal(signal.SIGTERM, handler)  # the native handler is Python's again


def _short(error: BaseException) -> str:
    """The first words of an error, without the identifiers that Ray puts on indented lines."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    return " ".join(" ".join(lines).split())[:LONGEST]
