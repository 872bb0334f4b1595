"""Settings of quick Wan transfers, and how to stop one in a denoising step."""

import pytest
from quick_runs import interrupted_in, kill_in_step_of

from ditflow.models.wan.schedule import WanSchedule

PROMPT = "a red circle"
QUICK = (  # settings of a transfer that takes seconds; the rest are the published ones
    *("--negative-prompt", "", "--frames", "9", "--size", "48x32", "--dtype", "float32", "--device", "cpu"),
    *("--guidance-blocks", "2", "--guided", "0.5", "--optimisation-steps", "2", "--steps", "6"),
    *("--learning-rate", "0.05", "0.02", "--guidance-scale", "2", "--quiet"),
)


def stop_in_step(index, monkeypatch, run):
    """Call `run`, which is to transfer, and interrupt it in a denoising step (from 0)."""
    interrupted = interrupted_in(index, WanSchedule, monkeypatch)
    with interrupted, pytest.raises(AssertionError, match="continues from there"):
        run()


def kill_in_step(index):
    """Have this process end with SIGKILL in a denoising step (from 0), once there is a checkpoint."""
    kill_in_step_of(WanSchedule, index)
