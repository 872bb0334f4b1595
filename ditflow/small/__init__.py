"""The small model that comes with the project: built by code on first use, with random weights."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from ditflow.errors import DitflowError
from ditflow.files import cache_folder

RECIPE = ("build.py", "vocabulary.py")
LIBRARIES = ("torch", "diffusers", "transformers", "sentencepiece")


def pipeline_folder() -> Path:
    """The small model's diffusers folder in the user's cache, built there if it is absent (some seconds).

    Its name carries a hash of the recipe's source and the libraries' versions, so a change of either builds
    another one. Raises DitflowError where the cache cannot be written.
    """
    folder = cache_folder() / f"small-{_recipe_hash()}"
    if folder.is_dir():
        return folder

    from ditflow.small.build import build_pipeline

    try:
        build_pipeline(folder)
    except DitflowError:
        if not folder.is_dir():  # else another process has just built the same
            raise
    except OSError as error:
        raise DitflowError(
            f"cannot write the small model to {folder} ({error.strerror}): "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def _recipe_hash() -> str:
    digest = hashlib.sha256()
    for name in RECIPE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    for name in LIBRARIES:
        digest.update(f"{name} {version(name)}\n".encode())
    return digest.hexdigest()[:12]
