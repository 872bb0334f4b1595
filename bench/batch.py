"""The same jobs as a batch and as a loop of commands: the wall time of both, and their ratio.

`python -m bench.batch [--jobs 24] [--workers 1]`, with the `batch` extra, on a CPU. The jobs are short
transfers with the small model, so most of the loop's time is what each command does before its first step.
The batch comes first; both begin with an empty cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from ditflow.small.clips import FRAME_RATE, made_clip
from ditflow.video import Clip, write_clip

COMMAND = [sys.executable, "-m", "ditflow"]
CLIPS, PROMPTS = 4, ("a red circle on a blue background", "a blue square on a white background")
QUICK = {"model": "small", "frames": 9, "steps": 2, "guided": 0.5, "optimisation_steps": 1, "device": "cpu"}


def make_jobs(folder: Path, count: int) -> list[dict[str, object]]:
    """Jobs of a few clips, prompts and seeds; writes the clips."""
    for seed in range(CLIPS):
        write_clip(Clip(made_clip(seed, frames=9).frames, FRAME_RATE), folder / f"clip{seed}.mp4")
    return [
        QUICK
        | {
            "video": str(folder / f"clip{number % CLIPS}.mp4"),
            "prompt": PROMPTS[number // CLIPS % len(PROMPTS)],
            "seed": number // (CLIPS * len(PROMPTS)),
        }
        for number in range(count)
    ]


def seconds_of(commands: list[list[str]], folder: Path, cache: str) -> float:
    """The wall time of commands, one after the other, with a cache folder of their own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / cache)}
    begun = time.monotonic()
    for command in commands:
        subprocess.run([*COMMAND, *command], cwd=folder, env=environment, check=True, capture_output=True)
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = make_jobs(folder, options.jobs)
        (folder / "jobs.yaml").write_text(yaml.safe_dump(jobs))
        loop = []
        for number, job in enumerate(jobs):
            (folder / f"{number}.yaml").write_text(yaml.safe_dump(job))
            loop.append(["transfer", "--config", f"{number}.yaml", "--output", f"loop/{number}"])
        batch = [["batch", "jobs.yaml", "--workers", str(options.workers)]]
        batch_seconds = seconds_of(batch, folder, "cache of the batch")
        loop_seconds = seconds_of(loop, folder, "cache of the loop")
    print(
        f"{options.jobs} jobs, {options.workers} workers: batch {batch_seconds:.0f} s, loop of commands "
        f"{loop_seconds:.0f} s, loop / batch {loop_seconds / batch_seconds:.2f}"
    )


if __name__ == "__main__":
    main()
