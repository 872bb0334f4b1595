"""The toy family, registered while this folder's tests run, and a pipeline of it."""

import pytest

from ditflow.models.families import FAMILIES
from toy_family.family import ToyFamily
from toy_family.pipeline import write_toy


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
