"""Small Wan pipelines with random weights, one of each kind, and the command line."""

import pytest
from safetensors.torch import load_file
from tiny_wan_pipelines import KINDS, write_wan
from wan_runs import PROMPT, QUICK

from ditflow.cli.main import main


@pytest.fixture(scope="session")
def wan_folders(tmp_path_factory):
    """The folder of each kind, written when it is first asked for."""
    root, found = tmp_path_factory.mktemp("models"), {}

    def folder(kind="wan-1.3b"):
        assert kind in KINDS
        if kind not in found:
            write_wan(root / kind, kind)
            found[kind] = root / kind
        return found[kind]

    return folder


@pytest.fixture
def transfer(ditflow, clip, wan_folders, tmp_path):
    """Runs a transfer; returns its folder."""

    def run(*words, kind="wan-1.3b"):
        given = ("--model", wan_folders(kind), "--video", clip, "--prompt", PROMPT, *QUICK)
        return tmp_path / ditflow("transfer", *given, *words).strip()

    return run


@pytest.fixture(scope="module")
def made(clip, wan_folders, tmp_path_factory):
    """Runs a transfer in a folder of its own, once for all tests; returns its tensors."""

    def run(*words, kind="wan-1.3b"):
        folder = tmp_path_factory.mktemp("made") / "run"
        given = ("--model", str(wan_folders(kind)), "--video", str(clip), "--prompt", PROMPT, *QUICK)
        assert main(["transfer", *given, *words, "--output", str(folder)]) == 0
        return load_file(folder / "latents.safetensors")

    return run
