"""`ditflow app`: the page of this machine."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ditflow.errors import DitflowError
from ditflow.progress import quieten_libraries

if TYPE_CHECKING:
    import socket

HOST, PORT = "127.0.0.1", 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default=HOST, help=f"address to listen at; {HOST}: for this machine only")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen at; 0: a free one")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of the runs"
    )


def serve(options: argparse.Namespace) -> None:
    """Serve the page until the process is asked to end."""
    if find_spec("gradio") is None:
        raise DitflowError("the page needs Gradio: pip install 'ditflow[app]'")
    with listening(options.host, options.port) as found:
        quieten_libraries()
        from ditflow.app.server import Server

        server = Server(options.runs)
        print(f"http://{options.host}:{found.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        server.serve(found, options.host)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises DitflowError if it cannot be had."""
    import socket

    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DitflowError(
            f"{host}:{port} cannot be used ({reason}): give another --host or --port"
        ) from None
