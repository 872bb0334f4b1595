"""The phases of a run at the real size: guided and denoising steps, streamed steps, text, encode and decode.

Weights of blocks are not counted, as in a plan, except when they are streamed.
"""

from functools import partial
from typing import Any

import torch

from bench.gates.gate import FRAMES, MODELS, Gate, Metrics
from bench.gates.saved import SavedBytes
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import flow_targets
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.streamed import Streamed
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Capture
from ditflow.planning.fake import FakeModel
from ditflow.planning.phases import Phases, Work
from ditflow.settings import Settings
from ditflow_kernels.backends import as_on

CHECKPOINTS = {"5b": ("none", "attention", "block"), "2b": ("none", "block")}
TILES = ("none", "144x96")


def gates() -> dict[str, Gate]:
    found = {f"steps/{model}-{FRAMES}": partial(steps, model) for model in MODELS}
    return found | {"streaming/5b-49": streaming, f"coding/{FRAMES}": coding, "coding/text": text}


def steps(model: str) -> dict[str, Metrics]:
    phases, name = Phases(Settings(model=model, frames=FRAMES)), f"steps/{model}-{FRAMES}"
    return {
        f"{name}/reference": metrics(phases.reference()),
        f"{name}/injection": metrics(phases.injection()),
        **{f"{name}/optimise-{each}": optimise(phases, each) for each in CHECKPOINTS[model]},
        f"{name}/denoise": metrics(phases.denoise()),
    }


def optimise(phases: Phases, checkpoint: str) -> Metrics:
    """One optimisation step without streaming, and what its graphs save besides weights and inputs."""
    with fake_tensors(), as_on(phases.device):
        present = [*phases.transformer.network.parameters(), *vars(phases.inputs).values()]
    with SavedBytes(present) as saved:
        work = phases.optimise(checkpoint, "device")
    return metrics(work) | {"saved_bytes": saved.peak_bytes}


def coding() -> dict[str, Metrics]:
    """2B and 5B have the same autoencoder."""
    phases, name = Phases(Settings(model="5b", frames=FRAMES)), f"coding/{FRAMES}"
    decoded = {f"{name}/decode-{tile}": metrics(phases.decode(tile), False) for tile in TILES}
    return {f"{name}/encode": metrics(phases.encode(), False), **decoded}


def text() -> dict[str, Metrics]:
    return {f"coding/text/{model}": metrics(Phases(Settings(model=model)).text(), False) for model in MODELS}


def metrics(work: Work, attention: bool = True) -> Metrics:
    apart = {"attention_flops": work.attention_flops} if attention else {}
    return {"flops": work.flops, **apart, "peak_bytes": work.peak_bytes}


def streaming() -> dict[str, Metrics]:
    """5B on the smallest card: all blocks streamed, block inputs on the host. Counts the ring's two slots."""
    settings = Settings(model="5b", frames=49)
    with fake_tensors(), as_on("cuda"):
        model = FakeModel(settings)
        transformer = model.transformer()
        weights = Streamed(transformer.blocks, torch.device("cpu"), 0)
        runner = BlockwiseRunner(transformer, weights, block_inputs="host")
        inputs, capture = model.inputs(transformer), Capture("query_key", settings.guidance_blocks)
        grid = model.grid()
        targets = flow_targets(runner.features(inputs, {}, capture), grid, settings)
        loss = FlowLoss(targets, grid, settings)

        def copies(step, *given: Any) -> Metrics:
            with Tracker(weights.device_buffers()) as found:
                step(*given)
            return {"peak_bytes": found.peak_bytes, "copied_bytes": found.copied_bytes}

        optimise = copies(runner.gradient, loss, "latents", inputs, {}, capture, torch.ones(()))
        denoise = copies(runner.forward, [inputs, inputs], {})
        return {"streaming/5b-49/optimise": optimise, "streaming/5b-49/denoise": denoise}
