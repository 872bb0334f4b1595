"""A lock that has no effect is refused: it would let two processes write to one run."""

import errno
import os

import pytest

from ditflow.errors import DitflowError, TemporaryError
from ditflow.run_folder import lock
from ditflow.run_folder.lock import InUse, locked


def test_a_second_lock_is_refused_and_may_be_had_later(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InUse, match="in use by process"), locked(tmp_path):
            pass
        assert issubclass(InUse, TemporaryError)
    with locked(tmp_path):
        pass


def test_locks_without_effect_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", lambda descriptor, how: None)
    with pytest.raises(DitflowError, match="no locks .*no effect.*another file system"), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", lock.NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def refuse(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(DitflowError, match="its file system has no locks"), locked(tmp_path):
        pass


def test_the_probe_leaves_the_lock_in_place(tmp_path):
    """A process that asks after the probe is refused."""
    with locked(tmp_path):
        if child := os.fork():
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        else:
            try:
                with locked(tmp_path):
                    os._exit(1)
            except InUse:
                os._exit(7)
