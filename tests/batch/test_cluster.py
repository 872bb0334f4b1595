"""What becomes of Ray's errors. Ray itself is stood in for here: `with_ray/` has the real one."""

import sys
from types import SimpleNamespace

import pytest

from ditflow.batch.cluster import Cluster
from ditflow.batch.messages import Ended, Ending, Ready
from ditflow.errors import DitflowError


class RayError(Exception):
    pass


class OutOfMemoryError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__("a long traceback")
        self.cause = cause


class ObjectRef:
    """A result that is there, or an error."""

    def __init__(self, result):
        self.result = result


def get(source):
    if isinstance(source.result, Exception):
        raise source.result
    return source.result


def wait(sources, num_returns, timeout):
    return sources, []


ERRORS = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, OutOfMemoryError=OutOfMemoryError)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    fake = SimpleNamespace(exceptions=ERRORS, ObjectRef=ObjectRef, get=get, wait=wait)
    monkeypatch.setitem(sys.modules, "ray", fake)
    made = Cluster(tmp_path, None, None, on_gpus=False)
    made.gpus = 0
    return made


def heard(cluster, *sources):
    cluster.pending = {source: number for number, source in enumerate(sources)}
    return [message for _, message in cluster.messages(0)]


def job(result):
    """The stream of a job whose next message this is."""
    return iter([ObjectRef(result)])


def test_messages_and_their_ends(cluster):
    assert heard(cluster, ObjectRef(Ready("here")), job(Ended(Ending.DONE))) == [
        Ready("here"),
        Ended(Ending.DONE),
    ]
    assert not cluster.pending


def test_a_dead_worker_is_said_without_identifiers(cluster):
    error = RayError("The node has gone.\n\tactor_id: 1234\nIt was ended.")
    (ended,) = heard(cluster, job(error))
    text = "its worker died: The node has gone. It was ended."
    assert ended == Ended(Ending.AGAIN, text, worker_lost=True)


@pytest.mark.parametrize("gpus, ending", [(0, Ending.MEMORY), (2, Ending.AGAIN)])
def test_a_worker_ended_for_memory_takes_less_only_on_a_cpu(cluster, gpus, ending):
    cluster.gpus = gpus
    (ended,) = heard(cluster, job(OutOfMemoryError("the node is low on memory")))
    assert ended.ending is ending and ended.worker_lost


def test_a_job_may_raise_and_a_refused_start_may_not(cluster):
    assert heard(cluster, job(RayTaskError(OSError("odd")))) == [Ended(Ending.AGAIN, "odd")]
    with pytest.raises(DitflowError, match="a worker cannot start: no such folder"):
        heard(cluster, ObjectRef(RayTaskError(DitflowError("no such folder"))))


def test_a_start_that_failed_is_a_lost_worker(cluster):
    (ended,) = heard(cluster, ObjectRef(RayTaskError(OSError("odd"))))
    assert ended == Ended(Ending.AGAIN, "odd", worker_lost=True)


def test_only_running_jobs_are_stopped(cluster, monkeypatch):
    waited = []
    monkeypatch.setattr(cluster.ray, "wait", lambda ends, num_returns: waited.extend(ends))
    for number in range(3):
        stop = SimpleNamespace(remote=lambda number=number: f"worker {number} has stopped")
        cluster.actors[number] = SimpleNamespace(stop=stop)
    cluster.pending = {ObjectRef(Ready("here")): 0, job(Ended(Ending.DONE)): 1}
    cluster.stop()
    assert waited == ["worker 1 has stopped"]
