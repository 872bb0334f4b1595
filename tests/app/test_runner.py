"""The queue: one job at a time, cancelling, errors, and what buttons put into it."""

import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ditflow.app import actions, form
from ditflow.app.runner import Runner
from ditflow.errors import Cancelled, DitflowError, SettingsError
from ditflow.jobs.events import Event


class StandInSession:
    """Records what is asked of it, and what is closed."""

    def __init__(self, model):
        self.common, self.closed = {"model": model}, False
        self.asked = []
        MADE.append(self)

    def close(self):
        self.closed = True

    def transfer(self, clip, prompt, **given):
        self.asked.append((clip, prompt, given))
        return iter([Event("text"), Event("denoise", preview=np.zeros((1, 2, 2, 3), np.uint8))])

    def resume(self, folder, **given):
        self.asked.append((folder, given))
        return iter([Event("denoise", folder=folder)])


MADE = []


@pytest.fixture
def runner(monkeypatch):
    MADE.clear()
    monkeypatch.setattr("ditflow.jobs.session.Session", StandInSession)
    runner = Runner()
    yield runner
    runner.close()


def until(question):
    deadline = time.monotonic() + 60
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(job):
    until(lambda: job.state not in ("waiting", "running"))
    return job.state, job.message


def add(runner, start, model="small"):
    return runner.add("transfer", "a prompt", model, start, Path("run"))


def held(gate):
    """A job that waits for the gate, or until it is cancelled."""

    def start(session, cancel):
        yield Event("denoise", 1, 4)
        while not gate.wait(0.01):
            if cancel.is_set():
                raise Cancelled("cancelled")

    return start


def test_jobs_take_turns(runner):
    gate = threading.Event()
    first, second = (add(runner, held(gate)) for _ in range(2))
    until(lambda: first.event)
    assert (first.state, second.state) == ("running", "waiting")
    gate.set()
    assert ended(first) == ended(second) == ("done", "done")
    assert len(MADE) == 1  # the model stays loaded


def test_another_model_gives_back_the_memory_of_the_first(runner):
    gate = threading.Event()
    gate.set()
    for model in ("small", "small-wan"):
        ended(add(runner, held(gate), model))
    assert [session.closed for session in MADE] == [True, False]


def test_cancelling(runner):
    gate = threading.Event()
    first, second = (add(runner, held(gate)) for _ in range(2))
    until(lambda: first.event)
    runner.cancel(second)
    assert ended(second) == ("cancelled", "cancelled before it began")
    assert runner.jobs() == [first]
    runner.cancel(first)
    assert ended(first) == ("cancelled", "cancelled")


def test_an_error_is_one_line_and_the_queue_goes_on(runner, caplog):
    def failing(error):
        def start(session, cancel):
            logging.getLogger("ditflow.jobs").warning("the clip is\nstill")
            raise error
            yield

        return start

    known = add(runner, failing(DitflowError("not enough\nmemory")))
    unknown = add(runner, failing(ZeroDivisionError("no")))
    assert ended(known) == ("failed", "not enough memory")
    assert ended(unknown) == ("failed", "unexpected ZeroDivisionError: no")
    assert known.warnings == ["the clip is still"]


def test_closing_cancels_what_runs():
    runner, gate = Runner(), threading.Event()
    job = add(runner, held(gate))
    until(lambda: job.event)
    runner.close()
    assert job.state == "cancelled"


def test_a_transfer_is_given_every_setting_of_the_form(runner, tmp_path):
    asked = form.Form("Sample", None, 9, "", "a red circle", "small", "fast", 9, None, False)
    job = actions.transfer(runner, asked, tmp_path, {"steps": 4})
    assert ended(job) == ("done", "done") and job.preview is not None
    ((clip, prompt, given),) = MADE[0].asked
    assert clip.endswith("sample-9.mp4") and prompt == "a red circle"
    assert (given["speed"], given["negative"], given["steps"]) == ("fast", "alternate", 4)
    assert given["device"] == "cpu"  # the model's own, as on the command line
    assert given["folder"] == job.folder == tmp_path / "sample-9-a-red-circle"


def test_no_two_jobs_have_one_folder(runner, tmp_path):
    gate = threading.Event()
    add(runner, held(gate))
    (tmp_path / "sample-9-a-red-circle").mkdir()
    asked = form.Form("Sample", None, 9, "", "a red circle", "small", "fast", 9, None, False)
    jobs = [actions.transfer(runner, asked, tmp_path, {"steps": 4}) for _ in range(2)]
    assert [job.folder.name for job in jobs] == ["sample-9-a-red-circle-2", "sample-9-a-red-circle-3"]
    gate.set()


@pytest.fixture
def made(tmp_path):
    """A run folder with its settings only."""
    asked = form.Form("Sample", None, 9, "", "a red circle", "small", "exact", 9, None, True)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(asked.settings(tmp_path / "runs", seed=7).to_yaml())
    return folder


def test_replay_inject_and_resume(runner, made):
    ended(actions.replay(runner, made.parent, made))
    ended(actions.inject(runner, made.parent, made, "a blue square"))
    ended(actions.resume(runner, made))
    replayed, injected, resumed = MADE[0].asked
    assert (replayed[1], replayed[2]["seed"], replayed[2]["saved_embedding"]) == ("a red circle", 7, "")
    assert (injected[1], injected[2]["seed"]) == ("a blue square", 7)
    assert injected[2]["saved_embedding"] == str(made / "embedding.safetensors")
    assert resumed[0] == made


def test_a_run_is_resumed_once_at_a_time(runner, made):
    gate = threading.Event()
    add(runner, held(gate))
    job = actions.resume(runner, made)
    with pytest.raises(SettingsError, match="one is in the queue"):
        actions.resume(runner, made)
    gate.set()
    ended(job)
    ended(actions.resume(runner, made))


def test_what_cannot_be_done_is_refused_at_once(runner, made):
    with pytest.raises(SettingsError, match="no prompt given"):
        actions.inject(runner, made.parent, made, " ")
    (made.parent / form.FILES / "sample-9.mp4").unlink()
    with pytest.raises(DitflowError, match="does not exist"):
        actions.replay(runner, made.parent, made)
    assert runner.jobs() == []


def test_the_download_is_named():
    assert actions.download_note("small") == ""
    assert "Apache-2.0" in actions.download_note("wan-1.3b")
