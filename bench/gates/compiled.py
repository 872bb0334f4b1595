"""What each kernel takes on every architecture of the tuning table, compiled where no GPU is."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import chain

from bench.gates.gate import Gate, Metrics
from bench.gates.launches import cases
from bench.gates.resources import Resources, resources
from ditflow_kernels.tuning import TUNING


def gates() -> dict[str, Gate]:
    return {"compile": lambda: metrics(chain.from_iterable(compile_all().values()))}


def compile_all() -> dict[tuple[str, int], list[Resources]]:
    """Every case on every architecture of the tuning table, on all processors."""
    jobs = [(case.name, architecture) for case in cases() for architecture in TUNING]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return dict(zip(jobs, pool.map(compile_one, *zip(*jobs, strict=True)), strict=True))


def compile_one(name: str, architecture: int) -> list[Resources]:
    (case,) = (case for case in cases() if case.name == name)
    return resources(case, architecture)


def metrics(kernels: Iterable[Resources]) -> dict[str, Metrics]:
    """Raises ValueError if a case has two specialisations of a kernel: their rows would have one name."""
    found: dict[str, Metrics] = {}
    for kernel in kernels:
        values = asdict(kernel)
        case, of, architecture = (values.pop(key) for key in ("case", "kernel", "architecture"))
        name = f"compile/{case}/{of}/sm_{architecture}"
        if name in found:
            raise ValueError(f"{name}: two specialisations; give each a case of its own in launches.py")
        found[name] = values
    return found
