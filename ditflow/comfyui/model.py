"""The node that chooses a model, and how ComfyUI takes the model's memory back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io

from ditflow.comfyui.sockets import CATEGORY, Model, more_settings, read_more
from ditflow.models.families import models
from ditflow.settings.speed import SPEEDS

if TYPE_CHECKING:
    from ditflow.jobs.session import Session

ALL = 1e30  # bytes, more than any GPU has


class DitflowWeights(torch.nn.Module):
    """Stands for a session's weights among the models that ComfyUI has loaded; holds none itself."""


class HeldModel:
    """A session that ComfyUI can empty.

    Between runs, a session has weights in host memory and nothing on the GPU. ComfyUI knows it as a loaded
    model: when that model is unloaded ("Unload Models", or to make room), the weights are given back. When
    ComfyUI forgets a node's output, the session goes with it.
    """

    def __init__(self, session: Session):
        self.session = session
        device = model_management.get_torch_device()
        self.patcher = ModelPatcher(DitflowWeights(), load_device=device, offload_device=torch.device("cpu"))
        self.patcher.add_callback(CallbacksMP.ON_DETACH, partial(_detached, session))

    @contextmanager
    def working(self) -> Iterator[Session]:
        """The session, while no model of ComfyUI is on the GPU."""
        make_room()
        try:
            yield self.session
        finally:
            model_management.load_models_gpu([self.patcher])  # tells ComfyUI of it; nothing is moved
            model_management.soft_empty_cache()


def make_room() -> None:
    """Unload ComfyUI's models from the GPU, because memory is planned by what is free; sessions have none."""
    device = model_management.get_torch_device()
    if device.type != "cpu":
        loaded = model_management.current_loaded_models
        keep = [each for each in loaded if isinstance(getattr(each.model, "model", None), DitflowWeights)]
        model_management.free_memory(ALL, device, keep_loaded=keep)
        model_management.soft_empty_cache()


def _detached(session: Session, patcher: ModelPatcher, unpatch_all: bool) -> None:
    if unpatch_all:  # False when ComfyUI only moves the model in its list
        session.close()


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DitflowLoadModel",
            display_name="DiTFlow: Model",
            category=CATEGORY,
            description="A video model, and how it is computed. It is loaded by the first run that needs it, "
            "and stays in host memory until ComfyUI unloads it.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(models()),
                    default="small",
                    tooltip="`small` is part of ditflow and runs on a CPU. Others are downloaded.",
                ),
                io.String.Input(
                    "memory", default="auto", tooltip="GPU memory to use: auto, gigabytes (8) or 8gb"
                ),
                io.Combo.Input(
                    "speed",
                    options=list(SPEEDS),
                    default="exact",
                    tooltip="exact, or less work for nearly the same (fast) or similar motion (faster)",
                ),
                io.Combo.Input(
                    "weights",
                    options=["full", "fp8", "int8", "nf4"],
                    default="full",
                    tooltip="Stored as they are (full, exact) or rounded. For a GGUF file write "
                    "`weights: FILE` into the settings.",
                ),
                more_settings(),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, memory: str, speed: str, weights: str, settings: str = "") -> io.NodeOutput:
        from ditflow.jobs.session import Session  # takes seconds, which ComfyUI's start need not wait for

        chosen = {"model": model, "memory": memory, "speed": speed, "weights": weights} | read_more(settings)
        return io.NodeOutput(HeldModel(Session(device=_device(), **chosen)))


def _device() -> str:
    """ComfyUI's device. On a machine without a GPU `auto`, which refuses a model too large for a CPU."""
    device = model_management.get_torch_device()
    return "auto" if device.type == "cpu" and not torch.cuda.is_available() else str(device)
