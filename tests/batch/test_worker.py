"""What a worker says of its job, and that it refuses a folder that the batch does not share with it."""

import logging
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import latents

from ditflow.batch.messages import Ended, Ending, Warned
from ditflow.batch.worker import Worker, check_shared
from ditflow.errors import DitflowError, SettingsError, TemporaryError
from ditflow.jobs.events import Event
from ditflow.jobs.session import Session
from ditflow.jobs.transfer import transfer
from ditflow.models.kept import KeptParts
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import Run


@pytest.fixture
def worker(monkeypatch):
    made = Worker()
    made.session = Session()
    return made


class Failing:
    """A session whose jobs raise an error."""

    def __init__(self, error):
        self.error = error

    def ensure(self, settings, folder):
        raise self.error
        yield


def test_a_job_is_reported_step_by_step(worker, settings):
    *messages, ended = worker.run(settings)
    assert ended == Ended(Ending.DONE)
    assert all(isinstance(message, Event) for message in messages)
    assert [(m.phase, m.step) for m in messages if m.phase == "denoise"] == [("denoise", n) for n in range(5)]
    assert Run.open(settings.output).finished
    assert list(worker.run(settings)) == [ended]  # finished: nothing is done


@pytest.mark.parametrize(
    "error, ended",
    [
        (SettingsError("steps: no"), Ended(Ending.FAILED, "steps: no")),
        (DitflowError("damaged"), Ended(Ending.FAILED, "damaged")),
        (TemporaryError("disk full"), Ended(Ending.AGAIN, "disk full")),
        (ValueError("odd\nmore"), Ended(Ending.AGAIN, "ValueError: odd")),
        (torch.OutOfMemoryError("CUDA"), Ended(Ending.MEMORY, "OutOfMemoryError: CUDA")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Ending.MEMORY),
        (MemoryError("no"), Ended(Ending.MEMORY, "MemoryError: no")),
    ],
    ids=lambda given: getattr(type(given), "__name__", ""),
)
def test_an_error_says_whether_to_try_again(worker, settings, error, ended):
    worker.session = Failing(error)
    (found,) = worker.run(settings)
    assert found == ended or found.ending is ended


def test_warnings_are_passed_on(worker, settings):
    found = list(worker.run(replace(settings, guided=0.0, gradients=1)))
    assert [m.text for m in found if isinstance(m, Warned)] == [
        "gradients, gradient_reuse: nothing is optimised, so they change nothing"
    ]
    assert not logging.getLogger("ditflow").handlers


def test_a_folder_that_is_not_locked_here_is_not_shared(tmp_path):
    with pytest.raises(DitflowError, match="is another folder, or locks do not reach it"):
        check_shared(tmp_path)
    with locked(tmp_path):
        check_shared(tmp_path)


def test_a_clip_is_encoded_once_and_its_latents_are_the_same_bits(settings, tmp_path, monkeypatch):
    encoded = []
    real = KeptParts.encoded

    def counted(self, key, encode):
        return real(self, key, lambda: encoded.append(key) or encode())

    monkeypatch.setattr(KeptParts, "encoded", counted)
    worker = Worker()
    worker.session = Session()
    jobs = [replace(settings, seed=seed, output=str(tmp_path / f"batch-{seed}")) for seed in (0, 1)]
    jobs += [replace(jobs[0], start=2, output=str(tmp_path / "batch-2"))]
    for job in jobs:
        assert list(worker.run(job))[-1] == Ended(Ending.DONE)
    assert len(encoded) == 2  # the same part of the clip, then another one
    for job in jobs:
        alone = transfer(replace(job, output=f"{job.output}-alone"))
        assert torch.equal(latents(alone), latents(Run.open(job.output)))
