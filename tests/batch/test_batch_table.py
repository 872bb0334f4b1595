"""What `ditflow batch` shows: a table that changes in place on a terminal, plain lines elsewhere."""

import re
import sys
import time

import pytest
from screens import drawn
from tiny_pipelines import quick_settings

from ditflow.batch.jobs import BatchJob
from ditflow.batch.messages import Ended, Ending
from ditflow.batch.queue import Queue
from ditflow.cli.batch_table import shown_batch
from ditflow.cli.terminal import steady_output
from ditflow.jobs.events import Event

NAME = "swan-a-duck-with-a-tophat-swimming"


@pytest.fixture
def queue(small_folder, tmp_path):
    def made(jobs):
        settings = [
            quick_settings("a.mp4", small_folder, output=str(tmp_path / f"{NAME}-{number}"))
            for number in range(1, jobs + 1)
        ]
        queue = Queue([BatchJob(number, each, False) for number, each in enumerate(settings, 1)], 1)
        queue.encoded = set().union(*(entry.texts | entry.clips for entry in queue.entries))
        return queue

    return made


def batch(queue, workers, pause=lambda: None):
    """Each worker takes a job; then the first job ends, a warning comes, and no job is left."""
    with shown_batch(quiet=False) as watch:
        for worker in range(workers):
            watch.changed(queue.take(worker, time.monotonic()))
            queue.report(worker, Event("denoise", 3, 25, seconds_left=61.0))
            watch.look(queue)
        pause()
        watch.changed(queue.end(0, Ended(Ending.DONE), time.monotonic()))
        watch.warned(queue.entries[1], "a \x1b[2J clip " + "without motion " * 9)
        watch.look(queue)
        pause()
        for worker in range(1, workers):
            queue.end(worker, Ended(Ending.FAILED, "no"), time.monotonic())
        watch.look(queue)
        pause()


def on_a_terminal(queue, workers, columns, rows):
    def act(pause):
        with open(2, "w", closefd=False) as sys.stderr, steady_output():
            batch(queue, workers, pause)

    return drawn(act, columns, rows)


@pytest.mark.parametrize("columns", [60, 120])
def test_the_table_changes_in_place(queue, columns):
    (first, second, third), end = on_a_terminal(queue(4), 3, columns, 30)
    shown, cursor = first
    assert shown[0] == "4 jobs: 0 done, 3 running, 1 waiting, 0 failed" and not cursor
    assert shown[1].split() == ["worker", "job", "folder", "phase", "step", "seconds", "left"]
    for number, line in enumerate(shown[2:], 1):
        worker, job, folder, *rest = line.split()
        assert (worker, job) == (str(number), str(number))
        assert rest == ["denoise", "3/25", rest[2], "0:01:01"] and rest[2].isdigit()
        name = f"{NAME}-{number}"
        assert folder == name if columns == 120 else name.startswith(folder.rstrip("…")) and len(folder) > 9
    assert len(shown) == 5

    shown, _ = second
    table = shown.index("4 jobs: 1 done, 2 running, 1 waiting, 0 failed")
    above = " ".join(shown[:table])
    assert re.match(r"job 1 \(.*\): done in [\d.]+ s job 2: warning: a \\x1b\[2J clip without motion", above)
    assert [line.split()[0] for line in shown[table + 1 :]] == ["worker", "2", "3"]

    shown, _ = third
    assert shown == [*second[0][:table], "4 jobs: 1 done, 0 running, 1 waiting, 2 failed"]
    assert end.shown == second[0][:table] and end.cursor


def test_a_table_longer_than_the_screen(queue):
    (first, *_), end = on_a_terminal(queue(21), 20, 80, 12)
    shown, _ = first
    assert shown[0] == "21 jobs: 0 done, 20 running, 1 waiting, 0 failed" and len(shown) == 12
    assert shown[-1].strip() == "..."
    assert not [line for line in end.lines if "denoise" in line or "running" in line]


def test_elsewhere_there_are_plain_lines(queue, capsys):
    batch(queue(4), 3)
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in told[:4]] == ["job 1", "job 2", "job 3", "job 1"]
    assert [line.rpartition("): ")[2] for line in told[:3]] == ["running"] * 3
    assert "): done in " in told[3] and told[4].startswith("job 2: warning: a \\x1b[2J clip without motion")
    assert len(told) == 5
