"""What a worker says of its job, and that it refuses a folder that the batch does not share with it."""

import logging
from dataclasses import replace
from threading import Thread

import pytest
import torch
from tiny_pipelines import latents

from ditflow.batch.clips import SharedClips
from ditflow.batch.messages import Ended, Ending, Warned
from ditflow.batch.worker import Worker, check_shared
from ditflow.errors import DitflowError, SettingsError, TemporaryError
from ditflow.jobs.events import Event
from ditflow.jobs.session import Session
from ditflow.jobs.transfer import resume, transfer
from ditflow.run_folder.lock import InUse, locked
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
        (InUse("in use"), Ended(Ending.IN_USE, "in use")),
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


def test_a_stopped_run_ends_after_its_step(worker, settings):
    messages = worker.run(settings)
    for message in messages:
        if message.phase == "denoise" and message.step == 1:
            break
    stopping = Thread(target=worker.stop)
    stopping.start()
    assert stopping.is_alive()  # it waits for the run
    left = list(messages)
    stopping.join()
    assert not [message for message in left if isinstance(message, Ended)]
    run = Run.open(settings.output)
    assert not run.finished
    assert torch.equal(
        latents(transfer(replace(settings, output=f"{settings.output}-alone"))), latents(resume(run.folder))
    )


def test_a_damaged_clip_file_is_encoded_again(tmp_path):
    clips, made = SharedClips(tmp_path), torch.arange(6.0).view(2, 3)
    assert clips.encoded(("a", 1), lambda: made) is made
    assert torch.equal(SharedClips(tmp_path).encoded(("a", 1), lambda: pytest.fail("encoded twice")), made)
    assert torch.equal(clips.encoded(("b", 1), lambda: made + 1), made + 1)
    first, second = tmp_path.iterdir()
    second.write_bytes(first.read_bytes())  # one in the place of another
    found = {key: clips.encoded((key, 1), lambda: -made) for key in "ab"}
    assert sorted(tensor.sum().item() for tensor in found.values())[0] == -15.0
