"""`python -m toy_family COMMAND ...` (from `tests/`): ditflow's command line with the toy registered.

`KILL_IN_STEP=n` ends the process with SIGKILL in denoising step n (from 0), once a checkpoint is there.
"""

import os
import signal
import sys
import time
from pathlib import Path

from ditflow.cli.main import main
from ditflow.models.families import FAMILIES
from toy_family.family import ToyFamily
from toy_family.schedule import ToySchedule


def kill_in_step(last: int) -> None:
    step = ToySchedule.step

    def killed(self, prediction, index, latents):
        if index == last:
            while not list(Path().rglob("state/step.safetensors")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, prediction, index, latents)

    ToySchedule.step = killed


if __name__ == "__main__":
    FAMILIES[ToyFamily.pipeline] = ToyFamily()
    if at := os.environ.get("KILL_IN_STEP"):
        kill_in_step(int(at))
    sys.exit(main())
