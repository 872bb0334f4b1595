"""The command `ditflow batch`: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ditflow.errors import DitflowError
from ditflow.progress import quieten_libraries
from ditflow.settings.values import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ditflow.batch.jobs import BatchJob
    from ditflow.batch.jobs_file import Row
    from ditflow.batch.queue import Entry
    from ditflow.batch.run import Watch

OUTPUT = Path("batch")
RETRIES = 3


def add_batch(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `ditflow batch`."""
    command.add_argument(
        "jobs", type=Path, metavar="JOBS", help="a file of jobs: *.yaml, *.csv or *.jsonl (docs/batch.md)"
    )
    command.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="FOLDER",
        help="where index.csv, report.html and runs without a folder of their own go",
    )
    add_workers(command)
    command.add_argument("--quiet", action="store_true", help="print only warnings and the index")


def add_workers(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say what jobs run on."""
    command.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="workers, each with one GPU or on a CPU (default: all GPUs, or one for each node without them)",
    )
    command.add_argument(
        "--address", metavar="ADDRESS", help="of a Ray cluster to run on, or auto (default: this machine)"
    )
    command.add_argument(
        "--retries",
        type=int,
        choices=range(100),
        default=RETRIES,
        metavar="N",
        help="how often a job that made no progress is tried again after its worker died or a cause that may "
        "pass",
    )


def run_rows(rows: Sequence[Row], options: argparse.Namespace, watch: Watch) -> Path:
    """Run the jobs of a file, and return the path of the index. Raises DitflowError if any has failed."""
    from ditflow.batch.cluster import import_ray

    import_ray()  # before anything that takes long
    quieten_libraries()
    from ditflow.batch.jobs import check_jobs
    from ditflow.batch.run import INDEX

    index = options.output / INDEX
    entries = run_jobs(check_jobs(rows, options.output), options, options.output, watch)
    if failed := [entry for entry in entries if entry.state == "failed"]:
        raise DitflowError(
            f"{len(failed)} of {len(entries)} jobs failed, the first one with: {failed[0].error}; see {index}"
        )
    return index


def run_jobs(
    jobs: Sequence[BatchJob], options: argparse.Namespace, output: Path, watch: Watch
) -> list[Entry]:
    """Run jobs on the workers that the options name. Raises DitflowError if the batch cannot go on."""
    from ditflow.batch.cluster import Cluster
    from ditflow.batch.run import run_batch

    on_gpus = any(job.settings.device != "cpu" for job in jobs)
    output = output.expanduser().absolute()
    workers = Cluster(output, options.workers, options.address, on_gpus)
    return run_batch(jobs, workers, output, options.retries, watch)
