"""The toy family, registered while this folder's tests run, a pipeline of it, and the command line."""

import pytest

from ditflow.models.families import FAMILIES
from toy_family.family import ToyFamily
from toy_family.pipeline import write_toy

PROMPT = "a red circle"


@pytest.fixture(scope="package", autouse=True)
def toy_family():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, ToyFamily.pipeline, ToyFamily())
        yield


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "toy"
    write_toy(folder)
    return folder


@pytest.fixture
def transfer(ditflow, clip, toy_folder, tmp_path):
    """Runs a transfer; returns its folder."""

    def run(*words):
        given = ("--model", toy_folder, "--video", clip, "--prompt", PROMPT, "--device", "cpu", "--quiet")
        return tmp_path / ditflow("transfer", *given, *words).strip()

    return run
