"""Make many small transfers in one process and fail if its memory grows.

Run it by `make soak`, or directly with --transfers N. It prints memory and object counts now and then.
"""

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from tiny_pipelines import build_pipeline

from ditflow import Settings, transfer
from ditflow.cli.main import quieten_libraries
from ditflow.small.clips import main as write_made_clip

TRANSFERS, WARM = 200, 20  # after WARM transfers, the caches of libraries are full
WINDOW = 10  # transfers
GROWTH = 1.02  # factor allowed since transfer WARM
LINES = 20  # printed in all, roughly
PLAIN = ("builtins", "importlib")
PROMPTS = ("a red circle on a blue background", "a green square on a white background")


def transfers(settings: Settings, count: int) -> Iterator[int]:
    """Run `count` transfers with different seeds and alternating prompts; yields each number when done."""
    for number in range(1, count + 1):
        run = transfer(replace(settings, seed=number, prompt=PROMPTS[number % len(PROMPTS)]))
        shutil.rmtree(run.folder)
        del run
        yield number


def living() -> dict[str, int]:
    """Count this process's objects, tensors, threads and open files.

    Leaves out objects of builtin types: Python's own caches, such as those of imports, hold a varying number
    of lists and functions.
    """
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    return {
        "objects": sum(str(kind.__module__).partition(".")[0] not in PLAIN for kind in kinds),
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "threads": threading.active_count(),
        "open files": psutil.Process().num_fds(),
    }


def memory() -> dict[str, int]:
    """Bytes resident on the host and, if there is a GPU, reserved on it."""
    gc.collect()
    found = {"host bytes": psutil.Process().memory_info().rss}
    if torch.cuda.is_available():
        found["GPU bytes"] = torch.cuda.memory_reserved()
    return found


def little_settings(folder: Path) -> Settings:
    """A transfer with a random model: two steps, one of them guided."""
    build_pipeline(folder / "model")
    write_made_clip([str(folder / "clip.mp4"), "--seed", "5"])
    return Settings(
        video=str(folder / "clip.mp4"),
        model=str(folder / "model"),
        negative_prompt="",
        size="48x32",
        frames=9,
        steps=2,
        guided=0.5,
        optimisation_steps=1,
        guidance_blocks=[2],
        dtype="float32",
        output=str(folder / "run"),
    )


def grown(readings: dict[int, dict[str, int]]) -> list[str]:
    """Return a line for each reading that has grown too much since transfer WARM.

    Compares medians over WINDOW transfers, because a single transfer may take memory and give it back.
    """
    before = [readings[number] for number in range(WARM, WARM + WINDOW)]
    after = [readings[number] for number in sorted(readings)[-WINDOW:]]
    lines = []
    for name in before[0]:
        warm, last = (statistics.median(found[name] for found in window) for window in (before, after))
        if last > GROWTH * warm:
            lines.append(f"{name} has grown: from {warm:,.0f} at transfer {WARM} to {last:,.0f} at the end")
    return lines


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transfers", type=int, default=TRANSFERS, help=f"how many (default: {TRANSFERS})")
    count = parser.parse_args(words).transfers
    if count < WARM + WINDOW:
        parser.error(
            f"--transfers: {count} given, {WARM + WINDOW} or more accepted: growth is counted from {WARM}"
        )
    quieten_libraries()
    readings = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for number in transfers(little_settings(Path(folder)), count):
            readings[number] = found = memory() | living()
            if number == 1:
                print("".join(f"{name:>20}" for name in ("transfer", *found)))
            if number in (1, WARM, count) or number % max(1, count // LINES) == 0:
                print("".join(f"{value:>20,}" for value in (number, *found.values())), flush=True)
    found = grown(readings)
    print("\n".join(found) or f"flat within {GROWTH - 1:.0%} from transfer {WARM} to {count}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
