"""Time and peak memory of motion flow on this machine's CPU: `python -m bench.motion_flow [--compiled]`.

CogVideoX-5B's heads, three latent frames of 480x720, bf16. Two passes: the soft flow, and the loss with its
gradients. The rivals take turns, so that what else the machine does falls on all of them; the median of the
rounds is shown. Memory is taken in a process of its own for each number: how far a second run of the pass
raises the resident set (VmHWM in /proc, so Linux only). The first run has loaded what stays loaded, and freed
blocks go back at once: it is what the pass needs, not what malloc keeps. Compiled code has no number there.
"""

import argparse
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ditflow_kernels import motion_flow, motion_flow_loss
from ditflow_kernels.motion_flow import chunked

GRID = (3, 30, 45)
HEADS, HEAD_DIM = 48, 64
TEMPERATURE = 2.0
ROUNDS = 5
PASSES = ("flow", "loss and gradients")


def reference_flow() -> Tensor:
    """Moving everywhere but within a frame, as hard flow is."""
    frames, height, width = GRID
    draw = torch.Generator().manual_seed(1)
    flow = torch.randint(1, 6, (frames, frames, height * width, 2), generator=draw).float()
    return flow * (1 - torch.eye(frames))[..., None, None]


def flow_per_head(query: Tensor, key: Tensor) -> Tensor:
    """The flow in float32, the logits added up a head at a time."""
    frames, height, width = GRID
    logits = torch.zeros(len(query), len(key))
    for head in range(HEADS):
        logits = logits + query[:, head].float() @ key[:, head].float().T
    logits = logits.view(frames, height * width, frames, height * width) / (HEADS * HEAD_DIM**0.5)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack([x.flatten(), y.flatten()], dim=-1).float()
    return ((TEMPERATURE * logits).softmax(dim=-1) @ cells - cells[:, None]).transpose(1, 2)


def loss_per_head(query: Tensor, key: Tensor) -> Tensor:
    reference = reference_flow()
    return (flow_per_head(query, key) - reference)[reference.norm(dim=-1) > 0].square().mean()


def one_product(query: Tensor, key: Tensor) -> Tensor:
    """The least a forward pass can be: all logits, left as they are."""
    return query.flatten(1) @ key.flatten(1).T


def three_products(query: Tensor, key: Tensor) -> None:
    """The least a pass with gradients can be."""
    logits = one_product(query.detach(), key.detach())
    query.grad = (logits @ key.detach().flatten(1)).view_as(query)
    key.grad = (logits.T @ query.detach().flatten(1)).view_as(key)


def flow_by(function: Callable, **options) -> Callable:
    return lambda query, key: function(query.detach(), key.detach(), GRID, TEMPERATURE, **options)


def gradients_by(function: Callable, **options) -> Callable:
    return lambda query, key: function(query, key, reference_flow(), GRID, TEMPERATURE, **options).backward()


RIVALS = {  # name: the two passes
    "reference, bf16": (
        flow_by(motion_flow, backend="reference"),
        gradients_by(motion_flow_loss, backend="reference"),
    ),
    "per head, float32": (
        lambda query, key: flow_per_head(query.detach(), key.detach()),
        lambda query, key: loss_per_head(query, key).backward(),
    ),
    "library products alone, bf16": (torch.no_grad()(one_product), three_products),
    "chunked": (
        flow_by(motion_flow, backend="chunked"),
        gradients_by(motion_flow_loss, backend="chunked"),
    ),
    "chunked, every row counts": (
        None,
        gradients_by(motion_flow_loss, rows="all", backend="chunked"),
    ),
}


def compiled() -> dict:
    flow, loss = torch.compile(chunked.soft_flow), torch.compile(chunked.loss_and_gradients)

    @torch.no_grad()
    def gradients(query: Tensor, key: Tensor) -> None:
        loss(query, key, reference_flow(), GRID, TEMPERATURE, "moving")

    return {"chunked, compiled": (flow_by(flow), gradients)}


def tokens() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = 2, prod(GRID), HEADS, HEAD_DIM
    query, key = torch.randn(shape, generator=draw, dtype=torch.float32).bfloat16()
    return query.requires_grad_(), key.requires_grad_()


def cases(rivals: dict) -> list[tuple[str, int]]:
    return [(name, index) for name, passes in rivals.items() for index, run in enumerate(passes) if run]


def seconds(rivals: dict) -> dict[tuple[str, int], float]:
    """The median time of each pass of each rival."""
    query, key = tokens()
    times = {case: [] for case in cases(rivals)}
    for _ in range(ROUNDS):
        for (name, index), taken in times.items():
            query.grad = key.grad = None
            start = time.perf_counter()
            rivals[name][index](query, key)
            taken.append(time.perf_counter() - start)
    return {case: statistics.median(taken) for case, taken in times.items()}


def peak_mib(case: tuple[str, int]) -> float:
    """MiB that one pass adds to the resident set at most, in a fresh process."""
    name, index = case
    query, key = tokens()
    RIVALS[name][index](query, key)
    query.grad = key.grad = None
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    RIVALS[name][index](query, key)
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--compiled", action="store_true", help="chunked under torch.compile too (needs a C++ compiler)"
    )
    rivals = RIVALS | (compiled() if parser.parse_args().compiled else {})

    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # for the processes below
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = dict(zip(cases(RIVALS), pool.map(peak_mib, cases(RIVALS), chunksize=1), strict=True))
    times = seconds(rivals)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {ROUNDS} rounds")
    print(f"{HEADS} heads x {HEAD_DIM}, grid {GRID}; in brackets: how many times less than the reference\n")
    for index, title in enumerate(PASSES):
        print(f"| {title} | seconds | peak MiB |\n| --- | --- | --- |")
        for name, of_pass in cases(rivals):
            if of_pass == index:
                print(f"| {name} | {cell(times, name, index, '.2f')} | {cell(memory, name, index, '.0f')} |")
        print()


def cell(numbers: dict[tuple[str, int], float], name: str, index: int, form: str) -> str:
    """The number, and how many times less than the reference's it is."""
    if (name, index) not in numbers:
        return "-"
    number, reference = numbers[name, index], numbers[next(iter(RIVALS)), index]
    return f"{number:{form}} ({reference / number:.1f})"


if __name__ == "__main__":
    main()
