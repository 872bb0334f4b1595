"""A guided and a denoising step, whole, of the real models: weights of blocks apart, as in a plan."""

from __future__ import annotations

from functools import partial

from bench.gates.gate import FRAMES, Gate, Metrics
from bench.gates.saved import SavedBytes
from ditflow.planning.phases import Phases, Work
from ditflow.settings import Settings
from ditflow_kernels.backends import as_on

CHECKPOINTS = {"5b": ("none", "attention", "block"), "2b": ("none", "block")}


def gates() -> dict[str, Gate]:
    return {f"steps/{model}-{FRAMES}": partial(measure, model) for model in CHECKPOINTS}


def measure(model: str) -> dict[str, Metrics]:
    phases, name = Phases(Settings(model=model, frames=FRAMES)), f"steps/{model}-{FRAMES}"
    return {
        f"{name}/reference": metrics(phases.reference()),
        f"{name}/injection": metrics(phases.injection()),
        **{f"{name}/optimise-{each}": optimise(phases, each) for each in CHECKPOINTS[model]},
        f"{name}/denoise": metrics(phases.denoise()),
    }


def optimise(phases: Phases, checkpoint: str) -> Metrics:
    """One optimisation step, nothing streamed; and what its graphs hold, of all but weights and inputs."""
    with phases.fakes, as_on(phases.device):
        inputs = vars(phases.inputs).values()
        present = [*phases.backbone.transformer.parameters(), *inputs]
    with SavedBytes(present) as saved:
        work = phases.optimise(checkpoint, "device")
    return metrics(work) | {"saved_bytes": saved.peak_bytes}


def metrics(work: Work) -> Metrics:
    return {"flops": work.flops, "attention_flops": work.attention_flops, "peak_bytes": work.peak_bytes}
