"""Which job a worker gets, when a failed one is tried again, and with which memory preset."""

import pytest
from tiny_pipelines import quick_settings

from ditflow.batch import queue as queues
from ditflow.batch.jobs import BatchJob
from ditflow.batch.messages import Ended, Ending
from ditflow.batch.queue import FIRST_PAUSE, IN_USE_PAUSE, LONGEST_PAUSE, Queue
from ditflow.jobs.events import Event

DONE = Ended(Ending.DONE)
AGAIN = Ended(Ending.AGAIN, "the disk is full")
LOST = Ended(Ending.AGAIN, "its worker died", worker_lost=True)


@pytest.fixture
def make(small_folder, tmp_path):
    """A queue of jobs, each with the clip, the prompt and the model given by a letter."""

    def job(number, clip, prompt, dtype="float32"):
        given = {"prompt": prompt, "dtype": dtype, "output": str(tmp_path / str(number))}
        return BatchJob(number, quick_settings(f"{clip}.mp4", small_folder, **given), finished=False)

    def made(*jobs, retries=1):
        return Queue([job(number, *letters) for number, letters in enumerate(jobs, 1)], retries)

    return made


def take(queue, worker, now=0.0):
    entry = queue.take(worker, now)
    return entry and entry.job.number


def encoded(queue, worker):
    queue.report(worker, Event("encode"))


def test_a_worker_keeps_its_model(make):
    queue = make("ax", ("b", "x", "float16"), "cx")
    assert take(queue, 0) == 1
    encoded(queue, 0)
    queue.end(0, DONE, 1.0)
    assert take(queue, 0) == 3
    queue.end(0, DONE, 1.0)
    assert take(queue, 0) == 2


def test_a_text_or_a_clip_that_is_being_encoded_is_waited_for(make):
    queue = make("ax", "ay", "by")
    assert take(queue, 0) == 1
    assert take(queue, 1) is None  # all have the empty negative prompt
    queue.report(0, Event("text"))
    assert take(queue, 1) is None
    queue.report(0, Event("encode"))
    assert take(queue, 1) == 3  # the second job has the same clip
    queue.report(1, Event("encode"))
    assert take(queue, 2) is None
    queue.report(0, Event("denoise", 0, 4))
    assert take(queue, 2) == 2


def test_what_was_encoded_is_not_waited_for_again(make):
    queue = make("ax", "ax", "ax")
    take(queue, 0)
    queue.report(0, Event("denoise", 0, 4))
    assert take(queue, 1) == 2 and take(queue, 2) == 3


def test_other_encoders_are_not_waited_for(make):
    queue = make("ax", ("a", "x", "float16"))
    assert take(queue, 0) == 1 and take(queue, 1) == 2


def test_a_failed_try_frees_its_texts(make):
    queue = make("ax", "bx")
    take(queue, 0)
    queue.end(0, Ended(Ending.FAILED, "no"), 1.0)
    assert take(queue, 1) == 2
    assert queue.entries[0].state == "failed" and queue.entries[0].error == "no"


def test_tries_are_limited_and_pauses_grow(make):
    queue = make("ax", retries=2)
    now, pauses = 0.0, []
    for _ in range(2):
        assert take(queue, 0, now) == 1
        entry = queue.end(0, AGAIN, now + 1)
        assert entry.state == "waiting" and entry.error == "the disk is full"
        pauses.append(entry.not_before - (now + 1))
        assert take(queue, 0, entry.not_before - 0.01) is None
        now = entry.not_before
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert take(queue, 0, now) == 1
    assert queue.end(0, AGAIN, now).state == "failed" and queue.finished
    assert queue.entries[0].seconds == pytest.approx(2.0)
    assert FIRST_PAUSE * 2**10 > LONGEST_PAUSE


def test_a_try_that_finished_a_new_step_does_not_count(make):
    queue = make("ax", retries=1)
    for step in (1, 2, 3):
        assert take(queue, 0, 100.0 * step) == 1
        queue.report(0, Event("denoise", step, 4))
        assert queue.end(0, LOST, 100.0 * step).state == "waiting"
    assert take(queue, 0, 1000.0) == 1
    queue.report(0, Event("denoise", 3, 4))  # done before: as far as the last time
    assert queue.end(0, LOST, 1000.0).state == "failed"


def test_a_lost_worker_has_no_model(make):
    queue = make("ax", ("b", "x", "float16"))
    take(queue, 0)
    queue.end(0, DONE, 0.0)
    queue.models[0] = queue.entries[1].model
    assert take(queue, 0) == 2
    queue.end(0, LOST, 0.0)
    assert queue.models == {} and take(queue, 1, 100.0) == 2


def test_a_folder_in_use_is_waited_for(make):
    queue = make("ax", retries=0)
    for look in range(20):
        assert take(queue, 0, look * IN_USE_PAUSE) == 1
        assert queue.end(0, Ended(Ending.IN_USE, "in use"), look * IN_USE_PAUSE).state == "waiting"
        assert take(queue, 0, (look + 0.9) * IN_USE_PAUSE) is None
    assert take(queue, 0, 20 * IN_USE_PAUSE) == 1
    assert queue.end(0, AGAIN, 0.0).state == "failed"


@pytest.mark.parametrize("used, then", [("auto", "auto"), ("16gb", "12gb"), ("4gb", "4gb")])
def test_out_of_memory_takes_the_next_smaller_preset(make, used, then, monkeypatch):
    queue = make("ax")
    take(queue, 0)

    class Found:
        def settings(self):
            return queues.replace(queue.entries[0].settings, preset=used)

    monkeypatch.setattr(queues.Run, "open", lambda folder: Found())
    entry = queue.end(0, Ended(Ending.MEMORY, "out of memory"), 0.0)
    assert entry.state == "waiting" and entry.settings.preset == then


def test_out_of_memory_before_there_is_a_run_folder(make):
    queue = make("ax")
    take(queue, 0)
    assert queue.end(0, Ended(Ending.MEMORY, "out of memory"), 0.0).settings.preset == "auto"
