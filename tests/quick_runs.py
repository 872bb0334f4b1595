"""A CogVideoX transfer that takes a second: its words, how to stop it, and what its folder holds."""

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import yaml
from safetensors.torch import load_file

PROMPT = "a red circle on a blue background"
QUICK = (
    *("--prompt", PROMPT, "--negative-prompt", "", "--frames", 10, "--size", "48x32", "--dtype", "float32"),
    *("--device", "cpu", "--guidance-blocks", 2, "--optimisation-steps", 2, "--learning-rate", 0.05, 0.02),
    *("--guidance-scale", 2, "--steps", 4, "--guided", 0.5, "--temperature", 8, "--quiet"),
)
GUIDED_WAYS = [  # loss, injection, what is optimised: every loss by its gradient, each way of optimising
    ("flow", "--injection", "latent"),
    ("flow", "--no-injection", "latent"),
    ("flow", "--no-injection", "embedding"),
    ("moft", "--no-injection", "latent"),
    ("moft", "--no-injection", "embedding"),
    ("smm", "--injection", "latent"),
    ("smm", "--injection", "embedding"),
    ("smm-release", "--no-injection", "latent"),
    ("smm-release", "--no-injection", "embedding"),
]


@contextmanager
def interrupted_in(index, schedule, monkeypatch):
    """Runs that are made inside are interrupted in a denoising step (from 0); `schedule` is its class."""
    step = schedule.step

    def interrupted(self, prediction, number, latents):
        if number == index:
            raise KeyboardInterrupt
        return step(self, prediction, number, latents)

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "step", interrupted)
        yield


def kill_in_step_of(schedule, index):
    """Have this process end with SIGKILL in a denoising step (from 0), once there is a checkpoint below."""
    step = schedule.step

    def killed(self, prediction, number, latents):
        if number == index:
            while not list(Path().rglob("state/step.safetensors")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, prediction, number, latents)

    schedule.step = killed


def latents(folder):
    return load_file(folder / "latents.safetensors")["latents"]


def record(folder):
    return json.loads((folder / "run.json").read_text())


def written(folder):
    """The settings that a run has written."""
    return yaml.safe_load((folder / "settings.yaml").read_text())
