"""Requests to end that arrive at awkward moments: in a finaliser, or before a cleanup that fails."""

import os
import signal
import time

import pytest

from ditflow.cli import main as cli
from ditflow.cli.interrupts import HungUp, Terminated, terminable
from ditflow.errors import DitflowError, interruption


class Slow:
    """Its finaliser gets a signal."""

    def __init__(self, signum):
        self.signum = signum

    def __del__(self):
        os.kill(os.getpid(), self.signum)
        for _ in range(1000):
            pass


def test_a_request_in_a_finaliser_is_not_lost(capfd):
    with pytest.raises(Terminated), terminable():
        Slow(signal.SIGTERM)
        time.sleep(20)
    assert capfd.readouterr().err == ""


def test_other_errors_in_finalisers_are_still_shown(monkeypatch):
    shown = []
    monkeypatch.setattr("sys.unraisablehook", shown.append)

    class Wrong:
        def __del__(self):
            raise ValueError

    with terminable():
        Wrong()
    assert shown[0].exc_type is ValueError


@pytest.mark.parametrize("kind", [RuntimeError, DitflowError])
def test_a_request_whose_cleanup_fails_is_still_a_request(kind, monkeypatch, capsys):
    def command(options):
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(20)
        finally:
            raise kind("trying to pop from empty mode stack")

    monkeypatch.setitem(cli.COMMANDS, "doctor", command)
    assert cli.main(["doctor"]) == 129
    assert capsys.readouterr().err == "ditflow: the terminal was closed\n"


def test_what_counts_as_a_request():
    try:
        try:
            raise HungUp
        except HungUp:
            raise ValueError from None
    except ValueError as error:
        assert isinstance(interruption(error), HungUp)
    assert interruption(ValueError()) is None and interruption(None) is None


def test_a_library_that_changes_the_error_does_not_change_the_exit_code(monkeypatch, capsys):
    def command(options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        except KeyboardInterrupt:
            pass
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "doctor", command)
    assert cli.main(["doctor"]) == 143
    assert capsys.readouterr().err == "ditflow: terminated\n"
