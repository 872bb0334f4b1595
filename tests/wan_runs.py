"""Settings of quick Wan transfers, and a process for one, which ends with SIGKILL in a denoising step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick_runs import interrupted_in

from ditflow.models.wan.schedule import WanSchedule

PROMPT = "a red circle"
QUICK = (  # settings of a transfer that takes seconds; the rest are the published ones
    *("--negative-prompt", "", "--frames", "9", "--size", "48x32", "--dtype", "float32", "--device", "cpu"),
    *("--guidance-blocks", "2", "--guided", "0.5", "--optimisation-steps", "2", "--steps", "6"),
    *("--learning-rate", "0.05", "0.02", "--guidance-scale", "2", "--quiet"),
)


def killed_in_step(index, folder, *words):
    """Run a transfer that is killed in a denoising step (from 0), once there is a checkpoint."""
    paths = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "wan_runs", str(index), "transfer", *map(str, (*QUICK, *words))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr


def stop_in_step(index, monkeypatch, run):
    """Call `run`, which is to transfer, and interrupt it in a denoising step (from 0)."""
    interrupted = interrupted_in(index, WanSchedule, monkeypatch)
    with interrupted, pytest.raises(AssertionError, match="continues from there"):
        run()


def main(last, words):
    from ditflow.cli.main import main

    step = WanSchedule.step

    def killed(self, prediction, index, latents):
        if index == last:
            while not list(Path().rglob("state/step.safetensors")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, prediction, index, latents)

    WanSchedule.step = killed
    return main(words)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
