"""The work of a whole run on a CPU, ours and the released code's way (`bench.timed.full`)."""

from collections.abc import Callable

import torch

from bench.gates.gate import Gate, Metrics
from bench.rivals import RIVAL, runner_of
from bench.subjects import FULL, Case
from bench.timed.full import RUNS
from ditflow.guidance.targets import flow_targets
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Capture, Loss
from ditflow_kernels import motion_flow, motion_flow_loss


def gates() -> dict[str, Gate]:
    return {"rivals/whole-run": lambda: {f"rivals/whole-run/{side}": operations(side, FULL) for side in RUNS}}


def operations(side: str, case: Case) -> Metrics:
    """Each pass, times how often a run makes it; every row of the loss counts."""
    settings = case.settings
    flow = Capture("query_key", settings.guidance_blocks)
    keys = Capture("key_value", settings.injection_blocks)
    with fake_tensors(), runner_of(side, case) as runner:
        inputs, _ = case.inputs()
        reference = flops(lambda: flow_targets(runner.features(inputs, {}, flow), case.grid, settings))
        injection = flops(lambda: runner.features(inputs, {}, keys))
        update = flops(lambda: runner.gradient(loss_of(side, case), "latents", inputs, {}, flow, 1.0))
        denoising = flops(lambda: runner.forward([inputs, inputs], {}))
    optimisation = reference + settings.guided_steps * (injection + settings.optimisation_steps * update)
    return {"optimisation_flops": optimisation, "flops": optimisation + settings.steps * denoising}


def loss_of(side: str, case: Case) -> Loss:
    """The flow loss with all rows: fake tensors cannot tell which rows move."""
    frames, height, width = grid = case.grid
    target, temperature = torch.empty(frames, frames, height * width, 2), case.settings.temperature
    if side == RIVAL:
        return lambda _, read: (motion_flow(*read, grid, temperature) - target).square().mean()
    return lambda _, read: motion_flow_loss(*read, target, grid, temperature)


def flops(work: Callable[[], object]) -> int:
    with Tracker() as found:
        work()
    return found.flops
