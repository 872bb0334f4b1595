"""How the chunked backend walks the `[S, S]` logits: some query rows against some whole key frames."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ditflow_kernels.workspace import panels


class Panel(NamedTuple):
    """Neighbouring cells of one query frame, and the key frames that matter to them."""

    frame: int  # query frame
    cells: slice  # its cells
    runs: list[slice]  # key frames, neighbours together


def all_panels(frames: int, cells: int, bytes_per_row: int, budget: int) -> Iterator[Panel]:
    """Every query row against every key frame."""
    for frame in range(frames):
        for stretch in panels(cells, bytes_per_row, budget):
            yield Panel(frame, stretch, [slice(0, frames)])


def counting_panels(counts: Tensor, bytes_per_row: int, budget: int) -> list[Panel]:
    """Every query row against the key frames in which a row of its panel counts; these may be none.

    counts: [frames (query), frames (key), cells] bool. Waits for the device once.
    """
    frames, _, cells = counts.shape
    stretches = list(panels(cells, bytes_per_row, budget))
    wanted = torch.stack([counts[:, :, stretch].any(dim=-1) for stretch in stretches], dim=1).tolist()
    return [
        Panel(frame, stretch, _runs(key_frames))
        for frame, of_frame in enumerate(wanted)
        for stretch, key_frames in zip(stretches, of_frame, strict=True)
    ]


def _runs(wanted: list[bool]) -> list[slice]:
    """Neighbouring true positions as slices."""
    runs = (list(positions) for on, positions in groupby(range(len(wanted)), wanted.__getitem__) if on)
    return [slice(run[0], run[-1] + 1) for run in runs]
