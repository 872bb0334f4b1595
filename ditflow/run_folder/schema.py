"""What the files of a checkpoint must hold, so that a resumed run can rely on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.models.protocols import Schedule, SchedulerState
from ditflow.schema import Keys, ListOf, Number, OneOf, OrNull, Text, Whole, problem

REUSE, GUIDANCE = "reuse.", "guidance."  # before the names of these parts of a state in its file


@dataclass(frozen=True)
class Shapes:
    """The shapes of a run's tensors."""

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
        wanted |= {name: self.latents for name in tensors if name.startswith(GUIDANCE)}
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

    def check_reuse(self, path: Path, reuse: Mapping[str, Tensor]) -> None:
        """Raises DitflowError if what later steps may reuse cannot be this run's."""
        if not reuse:
            return
        pairs = ({"difference", "uses"}, {"mark", "residual"})
        kept = set().union(*(pair for pair in pairs if pair & reuse.keys()))
        if reuse.keys() != kept:
            raise _wrong(path, "reuse", ", ".join(sorted(reuse)), " and ".join(map(str, map(sorted, pairs))))
        for name in kept - {"uses"}:
            tensor, shape = reuse[name], self.latents if name == "difference" else reuse["mark"].shape
            if tuple(tensor.shape) != tuple(shape) or not tensor.is_floating_point():
                raise _wrong(path, name, f"{tensor.dtype} {list(tensor.shape)}", f"floats {list(shape)}")
        if "uses" in kept and (reuse["uses"].shape or int(reuse["uses"]) not in (0, 1)):
            raise _wrong(path, "uses", "something else", "0 or 1")


STEPS = ListOf(
    Keys(
        {
            "guidance_scale": OrNull(Number(-1e300, 1e300)),
            "prompt": OneOf(("run", "reused")),
            "negative": OneOf(("run", "reused", "none")),
            "gradient_cosine": OrNull(Number(-1.01, 1.01)),
            "loss": OrNull(Text(20)),
        },
        required=("guidance_scale", "prompt", "negative"),
    ),
    0,
    1000,
)
CLIP = Keys({"frame_rate": ListOf(Whole(1, 1 << 62), 2, 2), "threads": Whole(1, 4096)}, ("frame_rate",))
STEP = Keys(
    {
        "index": Whole(0, 1000),
        "losses": ListOf(ListOf(Number(-1e300, 1e300), 0, 1000), 0, 1000),
        "skipped": Whole(0, 1 << 30),
        "embeddings": Whole(0, 1000),
        "steps": STEPS,
    },
    required=("index", "losses", "skipped", "embeddings"),
)


def check_facts(path: Path, facts: Mapping[str, Any], wanted: Keys) -> None:
    """Raises DitflowError if a checkpoint file lacks one of these facts or has another kind of value."""
    if found := problem(wanted, facts):
        raise DitflowError(f"{path}: {found}: start a new run")


def _wrong(path: Path, name: str, found: str, expected: str) -> DitflowError:
    return DitflowError(f"{path}: `{name}` is {found}, expected {expected}: start a new run")
