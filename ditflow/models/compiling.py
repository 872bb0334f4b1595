"""Compiles the pieces of a block with torch.compile. All blocks share them, so there are few graphs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import FunctionType

import torch

from ditflow.errors import DitflowError
from ditflow.files import cache_folder


def compile_piece(piece: FunctionType, backend: str | Callable = "inductor") -> Callable:
    """Compile a function as one graph for each combination of input shapes and required gradients.

    Inductor's results are cached on disk between runs: in TORCHINDUCTOR_CACHE_DIR if it is set, else in
    `compiled/` of ditflow's cache (`~/.cache/ditflow`, or under XDG_CACHE_HOME).
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    # torch stores graphs, and limits their number, for each code object: each model gets a copy
    copy = FunctionType(piece.__code__.replace(), piece.__globals__, piece.__name__)
    return torch.compile(copy, backend=backend, fullgraph=True, dynamic=False)


def compiles(setting: str, device: torch.device) -> bool:
    """Whether a run compiles its blocks: `auto` compiles on a GPU if there is a compiler.

    Raises DitflowError for `on` if a compiler is missing.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    missing = _missing(device)
    if missing and setting == "on":
        raise DitflowError(f"--compile on: this machine has no {missing}; install it, or use --compile off")
    return not missing


def _missing(device: torch.device) -> str | None:
    """What this machine lacks to compile for a device, or None."""
    if device.type != "cuda":
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        return None if shutil.which(compiler) else f"C++ compiler {compiler}"
    if not find_spec("triton"):
        return "triton (pip install triton)"
    # Triton compiles its launchers with a C compiler
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return None if any(map(shutil.which, compilers)) else f"C compiler ({' or '.join(compilers)})"
