"""Saves a run's optimised embeddings, one tensor for each guided step, to be used with other prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ditflow.errors import DitflowError, shown
from ditflow.limits import SOURCE_FRAMES
from ditflow.run_folder.run import Run, read_tensors
from ditflow.schema import ListOf, Number, OneOf, Schema, Text, Whole
from ditflow.settings import Settings

FILE = "embedding.safetensors"
FACTS = Schema(
    {
        "model": Text(4096),
        "size": Text(20),
        "frames": Whole(1, SOURCE_FRAMES),
        "timesteps": ListOf(Number(0, 1e6), 1, 1000),
        "kind": OneOf(("rotary", "additive")),
    },
    required=("model", "size", "frames", "timesteps", "kind"),
)


def embedding_facts(
    settings: Settings,
    timesteps: Sequence[int | float],
    kind: str,  # "rotary" or "additive"
) -> dict[str, str]:
    """What must be equal in the run that made the embeddings and in a run that uses them."""
    facts = {
        "model": settings.model,
        "size": str(settings.size),
        "frames": settings.frames,
        "timesteps": list(timesteps),
        "kind": kind,
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def saved_dtype(settings: Settings) -> torch.dtype:
    return torch.float32 if settings.keep_precision else torch.bfloat16


def save_embeddings(run: Run, embeddings: list[Tensor], facts: dict[str, str]) -> None:
    """Write tensors `step_000`, `step_001`, ... for the guided steps, with the facts as metadata."""
    run.write_tensors(FILE, {f"step_{i:03}": tensor for i, tensor in enumerate(embeddings)}, facts)


def read_embeddings(path: Path, facts: dict[str, str], steps: int) -> list[Tensor]:
    """The saved embeddings of `steps` guided steps, on the host.

    Raises DitflowError if the file is damaged, or is for another model, size, frame count or schedule.
    """
    tensors, metadata = read_tensors(path, "only runs with --optimise embedding save one")
    found = {}
    for name in facts:
        try:
            found |= {name: json.loads(metadata[name])} if name in metadata else {}
        except (ValueError, RecursionError):
            raise DitflowError(
                f"{path}: {name} is {shown(metadata[name])}, expected JSON; the file is damaged"
            ) from None
    FACTS.check(path, found)
    for name, wanted in facts.items():
        if found[name] != json.loads(wanted):
            raise DitflowError(
                f"{path}: made with {name} {metadata[name]}, but this run has {wanted}; they must be the same"
            )
    if sorted(tensors) != [f"step_{i:03}" for i in range(steps)]:
        raise DitflowError(
            f"{path}: holds {len(tensors)} guided steps, but this run has {steps}; use the same --guided"
        )
    return [tensors[name] for name in sorted(tensors)]
