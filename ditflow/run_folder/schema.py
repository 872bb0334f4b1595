"""What the files of a checkpoint must hold, so that a resumed run can rely on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditflow.errors import DitflowError, shown
from ditflow.models.protocols import Schedule, SchedulerState

MOST_THREADS = 4096


@dataclass(frozen=True)
class Schema:
    """Shapes of a run's tensors."""

    frames: tuple[int, ...]  # uint8 [frames, height, width, 3]
    text: tuple[int, ...]  # [1, tokens, channels]
    latents: tuple[int, ...]  # [1, frames, channels, height, width]

    def check(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Raises DitflowError if a checkpoint file lacks a tensor or has one of another type or shape."""
        texts = dict.fromkeys(("prompt", "negative_prompt", "source_prompt"), self.text)
        wanted = {
            "clip": {"frames": self.frames},
            "texts": texts,
            "reference": {"reference": self.latents},
            "step": {"latents": self.latents},
        }.get(path.stem, {"embedding": None})
        for name, shape in wanted.items():
            tensor = tensors.get(name)
            if tensor is None:
                raise _wrong(path, name, "missing", "a tensor")
            kind = "uint8" if path.stem == "clip" else "a floating-point type"
            right = tensor.dtype == torch.uint8 if path.stem == "clip" else tensor.is_floating_point()
            if not right or (shape and tuple(tensor.shape) != tuple(shape)):
                found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                raise _wrong(path, name, found, f"{kind} {list(shape) if shape else ''}".strip())
        if path.stem != "step" and (extra := sorted(tensors.keys() - wanted.keys())):
            raise _wrong(path, extra[0], "a tensor", "no such tensor")

    def check_state(self, path: Path, index: int, state: SchedulerState, schedule: Schedule) -> None:
        """Raises DitflowError if the last step or the scheduler's state does not fit a new schedule."""
        if index >= len(schedule.timesteps):
            raise _wrong(path, "index", str(index), f"less than {len(schedule.timesteps)}")
        for name, tensor in state.items():
            if tensor.is_floating_point() and tensor.numel() > 1 and tensor.shape != self.latents:
                raise _wrong(path, name, f"{list(tensor.shape)}", f"the latents' {list(self.latents)}")
        try:
            schedule.restore(state)
        except Exception as error:  # a library's, of many types
            reason = " ".join(str(error).split())
            raise DitflowError(
                f"{path}: the scheduler's state is damaged ({reason}): start a new run"
            ) from None
        if extra := sorted(state.keys() ^ schedule.state().keys()):
            raise _wrong(path, extra[0], "present", "the tensors of this run's scheduler")


Check = tuple[str, Callable[[Any], bool]]  # what is expected, in words and as a test


def whole(least: int, most: int) -> Check:
    return f"a whole number from {least} to {most}", lambda value: _is_whole(value, least, most)


FRAME_RATE: Check = (
    "two positive whole numbers",
    lambda value: (
        isinstance(value, list) and len(value) == 2 and all(_is_whole(n, 1, 1 << 62) for n in value)
    ),
)
LOSSES: Check = (
    "lists of numbers",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(step, list) and all(isinstance(n, int | float) for n in step) for step in value)
    ),
)
THREADS = whole(1, MOST_THREADS)
CLIP: dict[str, Check] = {"frame_rate": FRAME_RATE}
STEP: dict[str, Check] = {
    "index": whole(0, 1000),
    "losses": LOSSES,
    "skipped": whole(0, 1 << 30),
    "embeddings": whole(0, 1000),
}


def check_facts(path: Path, facts: Mapping[str, Any], wanted: Mapping[str, Check]) -> None:
    """Raises DitflowError if a checkpoint file lacks one of these facts or has another kind of value."""
    for name, (words, is_right) in wanted.items():
        if name not in facts:
            raise _wrong(path, name, "missing", words)
        if not is_right(facts[name]):
            raise _wrong(path, name, shown(facts[name]), words)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _wrong(path: Path, name: str, found: str, expected: str) -> DitflowError:
    return DitflowError(f"{path}: `{name}` is {found}, expected {expected}: start a new run")
