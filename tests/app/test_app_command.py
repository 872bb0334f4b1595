"""`ditflow app` on the command line."""

import socket
import sys

import pytest

from ditflow.app.command import listening
from ditflow.cli.arguments import build_parser
from ditflow.errors import DitflowError


def test_defaults_are_for_this_machine_only():
    options = build_parser().parse_args(["app"])
    assert (options.host, options.port, str(options.runs)) == ("127.0.0.1", 7860, "runs")


def test_without_gradio_it_says_what_to_install(ditflow, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, error = ditflow("app", fails=True)
    assert code == 1 and error.count("\n") == 1 and "pip install 'ditflow[app]'" in error


@pytest.mark.parametrize("port", [None, 70000])
def test_a_port_that_cannot_be_had(port):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(DitflowError, match="another --host or --port"),
    ):
        listening("127.0.0.1", taken.getsockname()[1] if port is None else port)
