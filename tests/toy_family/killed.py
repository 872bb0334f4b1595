"""Called in a process of its own before a command, which is killed; see `run_processes.py`."""

from quick_runs import kill_in_step_of

from ditflow.models.families import FAMILIES
from toy_family.family import ToyFamily
from toy_family.schedule import ToySchedule


def kill_in_step(index):
    """Register the toy, and end with SIGKILL in a denoising step (from 0), once there is a checkpoint."""
    FAMILIES[ToyFamily.pipeline] = ToyFamily()
    kill_in_step_of(ToySchedule, index)
