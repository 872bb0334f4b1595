"""`ditflow batch` on real Ray, ended by signals and repeated: `make test-batch`. Fails without Ray."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from ray_jobs import values
from tiny_pipelines import latents

from ditflow.batch.jobs import check_jobs
from ditflow.batch.jobs_file import read_rows
from ditflow.batch.run import INDEX, PAGE
from ditflow.jobs.transfer import transfer
from ditflow.run_folder.run import Run

TIMEOUT = 300  # seconds
COMMAND = [sys.executable, "-m", "ditflow", "batch", "jobs.yaml", "--workers", "2"]


class Batch:
    """A running `ditflow batch` in a process group of its own, as a shell starts it."""

    def __init__(self, folder):
        self.mark = f"BATCH_OF_TEST={time.monotonic_ns()}"
        self.begun = time.time()
        name, value = self.mark.split("=")
        environment = os.environ | {name: value, "PYTHONPATH": os.pathsep.join(sys.path)}
        kept = {"cwd": folder, "env": environment, "start_new_session": True}
        self.process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True, **kept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait(TIMEOUT)
        self.process.stderr.close()

    def wait_for_step(self, folder):
        """Until a job in the folder has saved a step."""
        while not any(path.stat().st_mtime > self.begun for path in folder.glob("*/state/step.safetensors")):
            assert self.process.poll() is None and time.time() < self.begun + TIMEOUT
            time.sleep(0.02)

    def end(self):
        """The exit code and the lines of standard error, once no process is left."""
        _, told = self.process.communicate(timeout=TIMEOUT)
        until = time.monotonic() + 120  # agents of Ray look five times whether it is still there
        while left := self.processes():
            assert time.monotonic() < until, left
            time.sleep(0.1)
        return self.process.returncode, told.splitlines()

    def processes(self):
        """Its processes and all that they have started, by their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self.mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def runs(self, program):
        commands = [Path(f"/proc/{process}/cmdline") for process in self.processes()]
        with suppress(OSError):
            return any(program in command.read_text() for command in commands)


def write_jobs(folder, clip, model, **changes):
    common = values(clip, model, **changes)
    jobs = {"common": common, "each": {"start": [0, 2], "seed": [0, 1]}}
    (folder / "jobs.yaml").write_text(yaml.safe_dump(jobs))


def states(folder):
    with (folder / INDEX).open(newline="") as file:
        return [row["state"] for row in csv.DictReader(file)]


def test_an_interrupted_batch_continues(clip, small_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jobs(tmp_path, clip, small_folder, steps=60)
    folder = tmp_path / "batch"
    with Batch(tmp_path) as batch:
        batch.wait_for_step(folder)
        os.killpg(batch.process.pid, signal.SIGINT)  # as a terminal does
        code, told = batch.end()
    assert code == 130
    assert told[-2] == "running jobs end after their current step; Ctrl-C ends them at once"
    done = states(folder).count("done")
    assert told[-1] == f"ditflow: interrupted; {done} of 4 jobs are done; the same command continues"
    assert set(states(folder)) <= {"done", "waiting"} and done < 4
    assert (folder / PAGE).exists() == bool(done)

    with Batch(tmp_path) as batch:
        batch.wait_for_step(folder)
        os.kill(batch.process.pid, signal.SIGTERM)  # as batch systems do
        code, told = batch.end()
    assert code == 143
    assert told[-1].startswith("ditflow: terminated; ")

    with Batch(tmp_path) as batch:
        assert batch.end()[0] == 0
    assert states(folder) == ["done"] * 4 and (folder / PAGE).exists()
    jobs = check_jobs(read_rows(Path("jobs.yaml")), folder)
    assert any(Run.open(job.folder).record()["resumed"] for job in jobs)
    for job in jobs:
        alone = transfer(replace(job.settings, output=f"{job.folder}-alone"))
        assert torch.equal(latents(alone), latents(Run.open(job.folder)))


def test_a_second_interrupt_ends_at_once(clip, small_folder, tmp_path):
    write_jobs(tmp_path, clip, small_folder, optimisation_steps=1000)  # long steps
    with Batch(tmp_path) as batch:
        lines = iter(batch.process.stderr.readline, "")
        assert any("running" in line for line in lines)
        time.sleep(1.0)
        os.killpg(batch.process.pid, signal.SIGINT)
        assert any("current step" in line for line in lines)
        time.sleep(1.0)
        assert batch.process.poll() is None  # it waits for the step
        os.killpg(batch.process.pid, signal.SIGINT)
        code, _ = batch.end()
    assert code == -signal.SIGINT


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_while_ray_starts(clip, small_folder, tmp_path, signum, code):
    write_jobs(tmp_path, clip, small_folder)
    with Batch(tmp_path) as batch:
        until = time.monotonic() + TIMEOUT
        while not batch.runs("gcs_server"):  # the first one that Ray starts
            assert batch.process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        os.kill(batch.process.pid, signum)
        assert batch.end()[0] == code
    assert states(tmp_path / "batch") == ["waiting"] * 4
