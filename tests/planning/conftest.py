"""The settings of a small run to plan."""

import pytest

from ditflow.settings import Settings


@pytest.fixture(scope="module")
def settings(small_folder):
    return Settings(
        model=str(small_folder), dtype="float32", size="96x64", frames=9, guidance_blocks=[2], steps=10,
    )  # fmt: skip
