"""Motion transfer for video diffusion transformers (DiTFlow), as a library and a command.

from ditflow import Settings, transfer
run = transfer(Settings(video="clip.mp4", prompt="a red circle on a blue background", model="small"))
"""

from typing import Any

from ditflow.errors import DitflowError, SettingsError
from ditflow.settings import Settings

__all__ = ["DitflowError", "Settings", "SettingsError", "decode", "flow", "resume", "transfer"]


def __getattr__(name: str) -> Any:
    """Import jobs on first use, because they import torch, which takes seconds."""
    if name in ("decode", "flow", "resume", "transfer"):
        from ditflow.jobs import flow, transfer

        return flow.flow if name == "flow" else getattr(transfer, name)
    raise AttributeError(f"module 'ditflow' has no attribute {name!r}")
