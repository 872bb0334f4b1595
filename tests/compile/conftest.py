"""These tests compile kernels for other architectures, in a pytest process of their own."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    raise pytest.UsageError(
        "tests/compile compiles: run it without TRITON_INTERPRET, in a process of its own"
    )
