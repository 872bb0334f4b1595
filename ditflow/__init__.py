"""Motion transfer for video diffusion transformers (DiTFlow), as a library and a command.

from ditflow import Settings, transfer
run = transfer(Settings(video="clip.mp4", prompt="a red circle on a blue background", model="small"))

docs/api.md describes all of it.
"""

from importlib import import_module
from typing import Any

from ditflow.errors import Cancelled, DitflowError, SettingsError
from ditflow.settings import Settings

# modules, imported on first use, because most import torch, which takes seconds
_WHERE = {
    "Clip": "video",
    "Event": "jobs.events",
    "Session": "jobs.session",
    "decode": "jobs.transfer",
    "ensure": "jobs.ensure",
    "evaluate": "evaluation.evaluate",
    "flow": "jobs.flow",
    "inject": "jobs.transfer",
    "plan": "jobs.plan",
    "report": "pages.page",
    "resume": "jobs.transfer",
    "transfer": "jobs.transfer",
}

__all__ = ["Cancelled", "DitflowError", "Settings", "SettingsError", "__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ditflow")
    if name in _WHERE:
        return getattr(import_module(f"ditflow.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'ditflow' has no attribute {name!r}")
