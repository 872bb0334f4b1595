"""Stands for ComfyUI in tests: exactly what `ditflow.comfyui` uses of it, and nothing else.

Written after reading ComfyUI 0.3.64 (2025-10-11): `comfy_api.latest`, `comfy.model_management`,
`comfy.model_patcher`, `comfy.patcher_extension`, `comfy.utils`, `folder_paths`. Whatever is missing here
raises an error, so a node that uses more needs the new part here, read from the same or a later version.
"""

import sys
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch


class InterruptProcessingException(Exception):
    """What ComfyUI expects of a node that was interrupted."""


# comfy_api.latest.io


@dataclass
class Input:
    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    socket = True


@dataclass
class WidgetInput(Input):
    default: object = None
    socket = False

    def accepts(self, value):
        return isinstance(value, type(self.default))


@dataclass
class NumberInput(WidgetInput):
    min: float | None = None
    max: float | None = None
    step: float | None = None
    control_after_generate: bool | None = None

    def accepts(self, value):
        return super().accepts(value) and self.min <= value <= self.max


@dataclass
class StringInput(WidgetInput):
    multiline: bool = False
    default: str = ""


@dataclass
class ComboInput(WidgetInput):
    options: list = field(default_factory=list)

    def accepts(self, value):
        return value in self.options


@dataclass
class MultiTypeInput(Input):
    types: list = field(default_factory=list)

    @property
    def io_type(self):
        return ",".join(each.io_type for each in self.types)


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None


def comfy_type(name, kind=Input, with_output=True):
    """A type with its `Input` and `Output`, as `io.Image` or `io.Custom("NAME")`."""
    members = {"io_type": name, "Input": type("Input", (kind,), {"io_type": name})}
    if with_output:
        members["Output"] = type("Output", (Output,), {"io_type": name})
    return type(name, (), members)


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False


class ComfyNode(ABC):
    @classmethod
    @abstractmethod
    def define_schema(cls):
        """The node's schema."""

    @classmethod
    @abstractmethod
    def execute(cls, **inputs):
        """The node's output."""


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class PreviewText:
    def __init__(self, value):
        self.value = value


class ComfyExtension(ABC):
    @abstractmethod
    async def get_node_list(self):
        """The extension's nodes."""


# comfy.utils, comfy.model_patcher, comfy.model_management


class ProgressBar:
    """A node's progress. As ComfyUI's, it raises the interrupt's exception when it is updated."""

    def __init__(self, stand_in, total):
        self.stand_in, self.total = stand_in, total

    def update_absolute(self, value, total=None, preview=None):
        self.stand_in.management.throw_exception_if_processing_interrupted()
        self.stand_in.shown.append((value, total or self.total, preview))
        self.stand_in.on_progress(value, total)


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size=0):
        self.model, self.load_device, self.parent = model, load_device, None
        self.callbacks = []

    def add_callback(self, call_type, callback):
        assert call_type == "on_detach"
        self.callbacks.append(callback)

    def detach(self, unpatch_all=True):
        for callback in self.callbacks:
            callback(self, unpatch_all)

    def __del__(self):
        self.detach(unpatch_all=False)


class LoadedModel:
    """An entry of `current_loaded_models`, which does not keep its model alive."""

    def __init__(self, patcher):
        self._patcher, self.device = weakref.ref(patcher), patcher.load_device

    @property
    def model(self):
        return self._patcher()


class ModelManagement(ModuleType):
    """The module `comfy.model_management`, with `device` and `interrupted` to be set by a test."""

    def __init__(self):
        super().__init__("comfy.model_management")
        self.device, self.interrupted, self.current_loaded_models = torch.device("cpu"), False, []

    def get_torch_device(self):
        return self.device

    def soft_empty_cache(self, force=False):
        """Nothing is cached."""

    def free_memory(self, memory_required, device, keep_loaded=()):
        unloaded = [
            each
            for each in self.current_loaded_models
            if each.device == device and each not in keep_loaded and each.model is not None
        ]
        for each in unloaded:
            each.model.detach(True)
            self.current_loaded_models.remove(each)

    def unload_all_models(self):
        self.free_memory(1e30, self.device)

    def load_models_gpu(self, models):
        """A model that is in the list already is detached, without being unloaded, and put in anew."""
        for patcher in models:
            for each in [each for each in self.current_loaded_models if each.model is patcher]:
                self.current_loaded_models.remove(each)
                patcher.detach(unpatch_all=False)
            self.current_loaded_models.insert(0, LoadedModel(patcher))

    def processing_interrupted(self):
        return self.interrupted

    def throw_exception_if_processing_interrupted(self):
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException


class StandIn:
    """The modules, and what they have recorded."""

    def __init__(self, temporary: Path):
        self.management, self.shown = ModelManagement(), []
        self.on_progress = lambda value, total: None
        folder_paths = _module("folder_paths", get_temp_directory=lambda: str(temporary))
        names = ["Schema", "ComfyNode", "NodeOutput", "Output"]
        io = SimpleNamespace(**{name: globals()[name] for name in names}, Custom=comfy_type)
        io.Image, io.Mask, io.Latent = (comfy_type(name) for name in ("IMAGE", "MASK", "LATENT"))
        io.Int, io.Float = comfy_type("INT", NumberInput), comfy_type("FLOAT", NumberInput)
        io.String, io.Combo = comfy_type("STRING", StringInput), comfy_type("COMBO", ComboInput)
        io.Boolean = comfy_type("BOOLEAN", WidgetInput)
        io.MultiType = SimpleNamespace(Input=MultiTypeInput)
        ui = SimpleNamespace(PreviewText=PreviewText)
        latest = _module("comfy_api.latest", io=io, ui=ui, ComfyExtension=ComfyExtension)
        utils = _module("comfy.utils", ProgressBar=partial(ProgressBar, self))
        patcher = _module("comfy.model_patcher", ModelPatcher=ModelPatcher)
        callbacks = SimpleNamespace(ON_DETACH="on_detach")
        extension = _module("comfy.patcher_extension", CallbacksMP=callbacks)
        comfy = _module("comfy", model_management=self.management)
        found = folder_paths, _module("comfy_api"), latest, comfy, self.management, patcher, extension, utils
        self.modules = {module.__name__: module for module in found}

    def installed(self, patch) -> None:
        """Be importable, until `patch` is undone; nodes that were imported before are forgotten."""
        for name, module in self.modules.items():
            patch.setitem(sys.modules, name, module)
        for name in [name for name in sys.modules if name.startswith("ditflow.comfyui.")]:
            patch.delitem(sys.modules, name)


def _module(name, **members):
    module = ModuleType(name)
    vars(module).update(members)
    return module
