"""Whole batches with workers in this process: index, page, lost workers, and a batch that is repeated."""

import csv
from dataclasses import replace

import pytest
import torch
from batch_workers import InProcess, count_encodings
from tiny_pipelines import latents

from ditflow.batch.jobs import BatchJob
from ditflow.batch.messages import Ended, Ending
from ditflow.batch.run import INDEX, PAGE, Watch, run_batch
from ditflow.batch.worker import CLIPS
from ditflow.cli.batch_table import Lines
from ditflow.errors import DitflowError
from ditflow.jobs.transfer import transfer
from ditflow.run_folder.lock import InUse, locked
from ditflow.run_folder.run import Run


@pytest.fixture
def jobs(settings, tmp_path):
    return [
        BatchJob(
            seed + 1,
            replace(settings, seed=seed, format="frames", output=str(tmp_path / f"run {seed}")),
            finished=False,
        )
        for seed in range(3)
    ]


def index(folder):
    with (folder / INDEX).open(newline="") as file:
        return list(csv.DictReader(file))


def again(jobs):
    return [replace(job, finished=True) for job in jobs]


def test_a_batch_survives_a_lost_worker_and_a_failing_job(jobs, tmp_path, capsys):
    (tmp_path / "run 1").mkdir()
    (tmp_path / "run 1" / "mine").touch()  # this one cannot be started
    workers = InProcess(tmp_path / "batch", 2, lose=[6])
    entries = run_batch(jobs, workers, tmp_path / "batch", 2, Lines())
    assert [entry.state for entry in entries] == ["done", "failed", "done"]
    assert sorted(workers.starts) == [0, 0, 1]
    assert [given.seed for _, given in workers.given].count(0) == 2  # lost, then continued

    rows = index(tmp_path / "batch")
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert [row["job"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["folder"] == str(tmp_path / "run 0") and float(rows[0]["seconds"]) > 0
    assert "is not a run folder" in rows[1]["error"]
    said = capsys.readouterr().err
    assert "worker 1 is lost: its worker died" in said
    assert "will be tried again: its worker died" in said

    page = (tmp_path / "batch" / PAGE).read_text()
    assert "run 0" in page and "run 2" in page and "run 1" not in page
    for entry in (entries[0], entries[2]):
        alone = transfer(replace(entry.job.settings, output=f"{entry.job.folder} alone"))
        assert torch.equal(latents(alone), latents(Run.open(entry.job.folder)))


def test_a_finished_batch_starts_no_worker(jobs, tmp_path):
    run_batch(jobs[:1], InProcess(tmp_path / "batch"), tmp_path / "batch", 0, Watch())
    workers = InProcess(tmp_path / "batch")
    (entry,) = run_batch(again(jobs[:1]), workers, tmp_path / "batch", 0, Watch())
    assert entry.state == "done" and not workers.starts


def test_a_job_that_always_loses_its_worker_fails(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr("ditflow.batch.queue.FIRST_PAUSE", 0.0)
    (entry,) = run_batch(
        jobs[:1], InProcess(tmp_path / "batch", lose=[0] * 9), tmp_path / "batch", 2, Watch()
    )
    assert entry.state == "failed" and entry.failures == 3
    assert not (tmp_path / "batch" / PAGE).exists()


def test_one_batch_at_a_time_has_a_folder(jobs, tmp_path):
    (tmp_path / "batch").mkdir()
    with locked(tmp_path / "batch"), pytest.raises(InUse):
        run_batch(jobs, InProcess(tmp_path / "batch"), tmp_path / "batch", 0, Watch())


def test_workers_that_never_start_end_the_batch(jobs, tmp_path):
    class Broken(InProcess):
        def start(self, worker):
            self.starts.append(worker)
            self.talks[worker] = iter([Ended(Ending.AGAIN, "no room", worker_lost=True)])

    workers = Broken(tmp_path / "batch")
    with pytest.raises(DitflowError, match="no worker can be started: no room"):
        run_batch(jobs, workers, tmp_path / "batch", 0, Watch())
    assert len(workers.starts) == 3
    assert {row["state"] for row in index(tmp_path / "batch")} == {"waiting"}


class Interrupting(Lines):
    """Asks the batch to end when the second job has finished a step."""

    def look(self, queue):
        event = queue.entries[1].event
        if event and event.phase == "denoise" and event.step == 1:
            raise KeyboardInterrupt


def test_an_interrupted_batch_keeps_what_is_done(jobs, tmp_path, capsys):
    folder = tmp_path / "batch"
    with pytest.raises(KeyboardInterrupt) as asked:
        run_batch(jobs, InProcess(folder), folder, 0, Interrupting())
    assert asked.value.__notes__ == ["1 of 3 jobs are done; the same command continues"]
    assert "running jobs end after their current step" in capsys.readouterr().err
    rows = index(folder)
    assert [row["state"] for row in rows] == ["done", "waiting", "waiting"] and float(rows[1]["seconds"]) > 0
    page = (folder / PAGE).read_text()
    assert "run 0" in page and "run 1" not in page

    entries = run_batch([replace(jobs[0], finished=True), *jobs[1:]], InProcess(folder), folder, 0, Watch())
    assert [entry.state for entry in entries] == ["done"] * 3
    assert Run.open(jobs[1].folder).record()["resumed"]
    for job in jobs:
        alone = transfer(replace(job.settings, output=f"{job.folder} alone"))
        assert torch.equal(latents(alone), latents(Run.open(job.folder)))


def test_a_job_that_ended_just_before_an_interrupt_is_done(jobs, tmp_path):
    class Late(InProcess):
        def messages(self, seconds):
            for worker, message in super().messages(seconds):
                if isinstance(message, Ended):
                    raise KeyboardInterrupt
                yield worker, message

    with pytest.raises(KeyboardInterrupt):
        run_batch(jobs[:1], Late(tmp_path / "batch"), tmp_path / "batch", 0, Watch())
    assert [row["state"] for row in index(tmp_path / "batch")] == ["done"]


def test_texts_and_clips_are_encoded_once_by_two_workers(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encoded = count_encodings(tmp_path / "encoded", monkeypatch.setattr)
    parts = [(start, prompt) for start in (0, 2) for prompt in ("a red circle", "a blue square")]
    jobs = [
        BatchJob(
            number,
            replace(settings, start=start, prompt=prompt, output=str(tmp_path / f"run {number}")),
            False,
        )
        for number, (start, prompt) in enumerate(parts, 1)
    ]
    folder = tmp_path / "batch"
    workers = InProcess(folder, 2, lose=[None, 12])  # the second one is lost after it has encoded
    entries = run_batch(jobs, workers, folder, 1, Watch())
    assert {entry.state for entry in entries} == {"done"} and {worker for worker, _ in workers.given} == {
        0,
        1,
    }
    assert sorted(encoded()) == ["clip"] * 2 + ["text"] * 3  # two prompts and the empty negative prompt
    assert not (folder / CLIPS).exists()
    for job in jobs:
        alone = transfer(replace(job.settings, output=f"{job.folder} alone"))
        assert torch.equal(latents(alone), latents(Run.open(job.folder)))
