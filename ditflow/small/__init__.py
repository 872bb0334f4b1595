"""The small models that come with the project: one that places tokens as 5B does, one as 2B does."""

from importlib.resources import files
from pathlib import Path

SMALL_MODELS = {"small": "rope", "small-sincos": "sincos"}  # name: how it places tokens


def pipeline_folder(name: str) -> Path:
    """The diffusers folder of one of SMALL_MODELS."""
    return Path(str(files("ditflow.small") / "models" / SMALL_MODELS[name]))
