"""Steps of 5B on the smallest card: no block stays, and what enters each of them waits on the host too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.gates.gate import Gate, Metrics
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.streamed import Streamed
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Until
from ditflow.planning.fake import fake_backbone, fake_inputs, fake_tensors
from ditflow.settings import Settings
from ditflow_kernels.backends import as_on

NAME = "streaming/5b-49"


def gates() -> dict[str, Gate]:
    return {NAME: measure}


def measure() -> dict[str, Metrics]:
    """All that is on the device, the two slots of the ring included."""
    settings = Settings(model="5b", frames=49)
    with fake_tensors(), as_on("cuda"):
        backbone = fake_backbone(settings)
        weights = Streamed(backbone.blocks, torch.device("cpu"), 0)
        runner = BlockwiseRunner(backbone, weights, boundaries="host")
        inputs, until = fake_inputs(settings, backbone), Until("query_key", settings.guidance_blocks)
        read = runner.features(inputs, {}, until)
        loss = FlowLoss(read, backbone.grid(inputs.latents), settings)

        def copies(step: Callable[[], Any]) -> Metrics:
            with Tracker(weights.device_buffers()) as found:
                step()
            return {"peak_bytes": found.peak_bytes, "copied_bytes": found.copied_bytes}

        return {
            f"{NAME}/optimise": copies(
                lambda: runner.gradient(loss, "latents", inputs, {}, until, torch.ones(()))
            ),
            f"{NAME}/denoise": copies(lambda: runner.forward([inputs, inputs], {})),
        }
