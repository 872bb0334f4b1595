"""Contests of the kernels' operations: plain PyTorch by panels, which is ours on a CPU, and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from bench.passes import SIZES, Pass, Size, passes
from bench.timed.contest import OURS, Call, Contest

SIZE = next(size for size in SIZES if size.name == "256 x 384, 9 frames")
OURS_IS = "chunked"
NOT_HERE = ("triton",)


def operations(size: Size = SIZE) -> list[Contest]:
    return [
        Contest(
            each.name,
            f"{size.name}, {size.heads} heads of {size.head_dim}, {str(size.dtype).removeprefix('torch.')}",
            partial(calls, each, size, compiled=False),
            partial(calls, each, size, compiled=True),
        )
        for each in passes()
    ]


def calls(each: Pass, size: Size, compiled: bool) -> Mapping[str, Call]:
    """The sides of a pass on one set of inputs, those that torch.compile makes or the others."""
    given = each.inputs(size, torch.device("cpu"), 0)
    return {
        OURS if rival.name == OURS_IS else rival.name: bind(rival.call, given)
        for rival in each.rivals()
        if rival.compiles == compiled and rival.name not in NOT_HERE
    }


def bind(call: Callable[..., Any], given: tuple) -> Call:
    return lambda: call(*given)
