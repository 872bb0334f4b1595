"""Torch's global settings while a job computes: always the same, whatever the caller has set."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ditflow.errors import DitflowError

logger = logging.getLogger(__name__)

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")  # its values with which cuBLAS is deterministic


@dataclass
class _Process:
    """What is known about this process. The settings are global, so its jobs take turns."""

    turn: threading.RLock
    depth: int = 0  # of nested `torch_state` contexts
    computed_in: int | None = None  # process id of the last job, here or before a fork


_process = _Process(threading.RLock())


@contextmanager
def torch_state(
    deterministic: bool | None = None, threads: int | None = None, fp16_sums: bool | None = None
) -> Iterator[None]:
    """Give torch's global settings the values that jobs need; restore the caller's at the end.

    Only one thread of a process can be in it: others wait. `fp16_sums`: add float16 products on a GPU in
    float16. None keeps what an outer `torch_state` has set; if there is none, it means not deterministic, the
    caller's number of threads, and sums in float32.

    Raises DitflowError in a forked process in which torch would hang.
    """
    _check_fork(threads)
    if not _process.turn.acquire(blocking=False):
        logger.info("waiting for another job of this process")
        _process.turn.acquire()
    try:
        nested = bool(_process.depth)
        if deterministic is None:
            deterministic = nested and torch.are_deterministic_algorithms_enabled()
        if fp16_sums is None:
            fp16_sums = nested and torch.backends.cuda.matmul.allow_fp16_accumulation
        _process.depth, _process.computed_in = _process.depth + 1, os.getpid()
        with _globals(deterministic, threads, fp16_sums), _modes():
            yield
    finally:
        _process.depth -= 1
        _process.turn.release()


@contextmanager
def _globals(deterministic: bool, threads: int | None, fp16_sums: bool) -> Iterator[None]:
    rows = [*_own_settings(deterministic, threads, fp16_sums), *_DEFAULTS]
    before = []
    for read, write, _ in rows:
        with suppress(RuntimeError):  # some cannot be read if the caller mixed torch's old and new settings
            before.append((write, read()))
    try:
        for _, write, wanted in rows:
            write(wanted)
        yield
    finally:
        for write, value in before:
            write(value)


@contextmanager
def _modes() -> Iterator[None]:
    """Leave the caller's inference mode, no_grad, autocast, anomaly detection and default device."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


Row = tuple[Callable[[], Any], Callable[[Any], Any], Any]  # how to read and write a setting; a job's value


def _own_settings(deterministic: bool, threads: int | None, fp16_sums: bool) -> Iterator[Row]:
    """The settings that a job chooses."""

    def read() -> tuple[bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def write(value: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])

    def write_workspace(value: str | None) -> None:
        os.environ.pop(WORKSPACE, None)
        if value is not None:
            os.environ[WORKSPACE] = value

    yield read, write, (deterministic, False)
    if deterministic and os.environ.get(WORKSPACE) not in WORKSPACES:
        yield lambda: os.environ.get(WORKSPACE), write_workspace, WORKSPACES[0]
    if threads:
        yield torch.get_num_threads, torch.set_num_threads, threads
    yield _attribute(_backends.cuda.matmul, "allow_fp16_accumulation", fp16_sums)


def _attribute(owner: Any, name: str, wanted: Any) -> Row:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value), wanted


# the values with which torch starts, in an order in which they can be written
_backends = torch.backends
_DEFAULTS: tuple[Row, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _attribute(_backends.cudnn, "allow_tf32", True),
    *(
        _attribute(owner, "fp32_precision", wanted)
        for owner, wanted in (
            (_backends, "none"),
            (_backends.cudnn, "none"),
            (_backends.mkldnn, "none"),
            (_backends.cuda.matmul, "none"),
            (_backends.mkldnn.matmul, "none"),
            (_backends.mkldnn.conv, "none"),
            (_backends.cudnn.conv, "tf32"),
            (_backends.cudnn.rnn, "tf32"),
        )
    ),
    _attribute(_backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", True),
    _attribute(_backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
    _attribute(_backends.cudnn, "enabled", True),
    _attribute(_backends.cudnn, "benchmark", False),
    _attribute(_backends.cudnn, "deterministic", False),
    _attribute(_backends.mkldnn, "enabled", True),
    (_backends.cuda.flash_sdp_enabled, _backends.cuda.enable_flash_sdp, True),
    (_backends.cuda.mem_efficient_sdp_enabled, _backends.cuda.enable_mem_efficient_sdp, True),
    (_backends.cuda.math_sdp_enabled, _backends.cuda.enable_math_sdp, True),
    (_backends.cuda.cudnn_sdp_enabled, _backends.cuda.enable_cudnn_sdp, True),
    (
        _backends.cuda.fp16_bf16_reduction_math_sdp_allowed,
        _backends.cuda.allow_fp16_bf16_reduction_math_sdp,
        False,
    ),
)


def _check_fork(threads: int | None) -> None:
    """Refuse to compute in a fork of a process that has computed: torch's threads do not survive a fork."""
    forked = _process.computed_in not in (None, os.getpid())
    if torch.cuda._is_in_bad_fork() or (forked and max(torch.get_num_threads(), threads or 1) > 1):
        raise DitflowError(
            "this process is a fork of one that has computed, so torch would hang in it: start processes "
            "with multiprocessing's `spawn` method, or use one thread (torch.set_num_threads(1))"
        )


def _after_fork() -> None:
    _process.turn, _process.depth = threading.RLock(), 0  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
