"""The toy family, registered while a test runs, and what the tests share."""

import pytest

from ditflow.models.families import FAMILIES
from toy_family.family import ToyFamily
from toy_family.pipeline import write_toy


@pytest.fixture(scope="session", autouse=True)
def toy_family():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, ToyFamily.pipeline, ToyFamily())
        yield


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory, toy_family):
    folder = tmp_path_factory.mktemp("models") / "toy"
    write_toy(folder)
    return folder
