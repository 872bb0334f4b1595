"""The committed table of what each kernel takes, by Triton version.

Refresh its rows of the installed version: `python tests/compile/table.py`
"""

import csv
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path

import triton
from cases import cases
from compiling import Resources, resources

from ditflow_kernels.launch import LAUNCHES

TABLE = Path(__file__).with_name("resources.csv")
COLUMNS = ["triton", *(field.name for field in fields(Resources))]


def compile_one(name: str, architecture: int) -> list[Resources]:
    (case,) = (case for case in cases() if case.name == name)
    return resources(case, architecture)


def compile_all() -> dict[tuple[str, int], list[Resources]]:
    """Every case on every architecture of the launch table, on all processors."""
    jobs = [(case.name, architecture) for case in cases() for architecture in LAUNCHES]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return dict(zip(jobs, pool.map(compile_one, *zip(*jobs, strict=True)), strict=True))


def rows(found: list[Resources]) -> list[dict[str, str]]:
    """As the table has them, strings."""
    return [
        {name: str(value) for name, value in ({"triton": triton.__version__} | asdict(kernel)).items()}
        for kernel in found
    ]


def committed() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refresh() -> None:
    others = [row for row in committed() if row["triton"] != triton.__version__]
    ours = rows(list(chain.from_iterable(compile_all().values())))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*others, *ours], key=lambda row: row["triton"]))
    print(f"{TABLE}: {len(ours)} kernels of Triton {triton.__version__}")


if __name__ == "__main__":
    refresh()
