"""The command `ditflow comfyui`. Imports nothing of ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action", choices=("install",), help="install: write the nodes' folder, or bring it up to date"
    )
    command.add_argument(
        "path", type=Path, metavar="PATH", help="folder of ComfyUI, or its folder custom_nodes"
    )


def install_nodes(options: argparse.Namespace) -> None:
    """Write the nodes' folder and print its path."""
    from ditflow.comfyui.install import install

    print(install(options.path))
