"""The shipped small models: one encodes positions as CogVideoX-5B does, the other as 2B does."""

from importlib.resources import files
from pathlib import Path

SMALL_MODELS = {"small": "rope", "small-sincos": "sincos"}  # name: how it encodes positions


def pipeline_folder(name: str) -> Path:
    """The diffusers pipeline folder of one of SMALL_MODELS."""
    return Path(str(files("ditflow.small") / "models" / SMALL_MODELS[name]))
