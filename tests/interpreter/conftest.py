"""These tests run the kernels in Triton's interpreter, in a pytest process of their own."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(
        "tests/interpreter needs TRITON_INTERPRET=1 before any kernel is imported: "
        "TRITON_INTERPRET=1 pytest tests/interpreter"
    )


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, whatever the order of the tests."""
    torch.manual_seed(0)
