"""How the chunked backend splits the `[S, S]` logits: some queries of a frame against whole key frames."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ditflow_kernels.workspace import even_slices


class Chunk(NamedTuple):
    """Neighbouring queries of one frame, and the key frames to multiply them with."""

    query_frame: int
    queries: slice  # cells of the query frame
    key_frame_runs: list[slice]  # neighbouring frames joined


def all_chunks(frames: int, cells: int, bytes_per_query: int, budget: int) -> Iterator[Chunk]:
    """Every query against every key frame."""
    for query_frame in range(frames):
        for queries in even_slices(cells, bytes_per_query, budget):
            yield Chunk(query_frame, queries, [slice(0, frames)])


def counted_chunks(
    counted: Tensor,  # [frames (query), frames (key), cells] bool
    bytes_per_query: int,
    budget: int,
) -> list[Chunk]:
    """Every query, with only the key frames for which a row of its chunk counts (possibly none).

    Waits for the device once.
    """
    frames, _, cells = counted.shape
    slices = list(even_slices(cells, bytes_per_query, budget))
    wanted = torch.stack([counted[:, :, queries].any(dim=-1) for queries in slices], dim=1).tolist()
    return [
        Chunk(query_frame, queries, _true_slices(key_frames))
        for query_frame, of_frame in enumerate(wanted)
        for queries, key_frames in zip(slices, of_frame, strict=True)
    ]


def _true_slices(flags: list[bool]) -> list[slice]:
    """Each run of neighbouring true flags as a slice."""
    runs = (list(positions) for on, positions in groupby(range(len(flags)), flags.__getitem__) if on)
    return [slice(run[0], run[-1] + 1) for run in runs]
