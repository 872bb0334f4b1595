"""Run the command line in forks of a warm process, so that torch is imported once for all cases.

A fork can plant a fault: a signal or an out-of-memory error at the n-th call in a stage of the job, a full
disk, or a limit on file size. Or it first calls a function of a test module, given as "module:name".
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

TIMEOUT = 300  # seconds; any case ends sooner, even on a busy machine
STAGES = ("begin", "text", "encode", "denoise", "decode", "write")
UNCOMPARED = ("run.json",)  # times and peak memory differ from run to run


class ForkServer:
    """The tests' connection to the warm process.

    An undisturbed run comes first: `whole` holds its files, `calls` counts the functions and layers that each
    stage calls.
    """

    def __init__(self, settings: Any, folder: Path):
        self.folder, self.config = folder, folder / "config.yaml"
        self.config.write_text(settings.to_yaml())

    def __enter__(self) -> ForkServer:
        # without a GPU, because autograd's GPU threads do not survive a fork
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
        )
        self.calls = self._answer()
        self.whole = contents(self.folder / "run")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(TIMEOUT)

    def run(self, folder: Path, *words: str, **faults: Any) -> int:
        """Run a command in a folder. Returns its exit code, or minus the signal that ended it."""
        case = {"folder": str(folder), "words": words, **faults}
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def transfer(self, folder: Path, *words: str, **faults: Any) -> int:
        return self.run(folder, "transfer", "--config", str(self.config), "--quiet", *words, **faults)

    def resume(self, folder: Path, *words: str, **faults: Any) -> int:
        return self.run(folder, "resume", "run", "--quiet", *words, **faults)

    def error(self, folder: Path) -> str:
        """Standard error of the last command that ran in a folder."""
        return (folder / "stderr").read_text()

    def _answer(self) -> Any:
        if not select.select([self.process.stdout], [], [], TIMEOUT)[0]:
            self.process.kill()
            raise TimeoutError(f"no answer in {TIMEOUT} s")
        return json.loads(self.process.stdout.readline())


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run, hidden ones included, except those that differ from run to run."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in UNCOMPARED]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    if data := found.get("embedding.safetensors"):  # safetensors writes metadata in random order
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.dumps(json.loads(data[8:start]), sort_keys=True)
        found["embedding.safetensors"] = header.encode() + data[start:]
    return found


def serve(config: str) -> None:
    """Make the undisturbed run, count the calls of another one, then fork for each line of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    words = ["transfer", "--config", config, "--quiet"]
    os.dup2(2, 1)  # keep what libraries print out of the answers
    import torch

    from ditflow.cli.main import main
    from ditflow.planning.choice import choose_plan
    from ditflow.settings import read_settings

    assert main(words) == 0
    choose_plan(read_settings(Path("run/settings.yaml")), torch.device("cpu"))  # cached for resuming forks
    counted = [*words, "--set", "output=counted"]
    assert forked({"folder": ".", "words": counted, "count": "calls.json", "no_cache": True}) == 0
    answers.write(Path("calls.json").read_text() + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(f"{forked(json.loads(line))}\n")
        answers.flush()


def forked(case: dict[str, Any]) -> int:
    pid = os.fork()
    if not pid:
        code = 70  # an exit code that no case expects
        try:
            code = child(case)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def child(case: dict[str, Any]) -> int:
    from ditflow.cli.main import main

    os.chdir(case["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    for descriptor, name in ((1, "stdout"), (2, "stderr")):  # files here, or what the case names
        path = case.get(name, name)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY), descriptor)
    if case.get("no_cache"):
        os.environ["XDG_CACHE_HOME"] = os.path.abspath("cache")
    if "largest_file" in case:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["largest_file"],) * 2)
    if "full_after" in case:
        fill_disk(case["full_after"])
    if "first" in case:
        function, *given = case["first"]
        module, _, name = function.partition(":")
        getattr(import_module(module), name)(*given)
    trap = Trap(**case.get("trap", {}))
    trap.set()
    code = main(case["words"])
    sys.setprofile(None)
    if "count" in case:
        Path(case["count"]).write_text(json.dumps(trap.calls))
    return code


class Trap:
    """Send this process a signal, or raise an out-of-memory error, at the `at`-th call of a stage.

    Counts the main thread's calls in each stage, and separately those of any `forward` ("layers of decode").
    """

    def __init__(self, stage: str = "", at: int = 0, signum: int = 0):
        self.stage, self.at, self.signum = stage, at, signum
        self.now, self.calls = "begin", Counter()

    def set(self) -> None:
        from ditflow.memory.meter import Meter

        phase = Meter.phase

        @contextmanager
        def noticed(meter, name, *steps):
            self._enter(name)
            with phase(meter, name, *steps):
                yield
            if name == "decode":
                self._enter("write")

        Meter.phase = noticed
        self._enter("begin")

    def _enter(self, stage: str) -> None:
        self.now = stage
        watches = not self.stage or self.stage.endswith(stage)
        sys.setprofile(self.watch if watches else None)  # profiling is slow: only where needed

    def watch(self, frame, event, _) -> None:
        if event not in ("call", "c_call"):
            return
        self._count(self.now)
        if event == "call" and frame.f_code.co_name == "forward":
            self._count(f"layers of {self.now}")

    def _count(self, stage: str) -> None:
        self.calls[stage] += 1
        if (stage, self.calls[stage]) != (self.stage, self.at):
            return
        if self.signum:
            os.kill(os.getpid(), self.signum)
        else:
            import torch

            raise torch.OutOfMemoryError("planted")


def fill_disk(after: int) -> None:
    """Make the disk full once this many files have been written."""
    from ditflow import files

    real, count = files._to_disk, Counter()

    def full(path: Path) -> None:
        count["files"] += path.is_file()
        if count["files"] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    files._to_disk = full


if __name__ == "__main__":
    serve(sys.argv[1])
