"""torch.compile, piece by piece: one compiled function serves all blocks, so there are few graphs."""

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
    """A function compiled as one graph for each set of shapes and gradients wanted.

    What inductor builds is kept on disk between runs, in `~/.cache/ditflow/compiled` (under XDG_CACHE_HOME
    where that is set), or wherever TORCHINDUCTOR_CACHE_DIR says.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    # torch keeps graphs, and limits their number, by code object: a model gets its own
    own = FunctionType(piece.__code__.replace(), piece.__globals__, piece.__name__)
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False)


def compiles(setting: str, device: torch.device) -> bool:
    """Whether `--compile` auto, on or off means compiled blocks: auto does on a GPU, where it can.

    Raises DitflowError where compiling is asked for and a compiler is missing.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    missing = _missing(device)
    if missing and setting == "on":
        raise DitflowError(f"--compile on: this machine has no {missing}; install it, or use --compile off")
    return not missing


def _missing(device: torch.device) -> str | None:
    """What compiling for a device needs and this machine lacks."""
    if device.type != "cuda":
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        return None if shutil.which(compiler) else f"C++ compiler {compiler}"
    if not find_spec("triton"):
        return "triton (pip install triton)"
    # Triton builds its launchers with one
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return None if any(map(shutil.which, compilers)) else f"C compiler ({' or '.join(compilers)})"
