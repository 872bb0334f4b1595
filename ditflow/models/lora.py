"""LoRA weights added to a transformer, once and for all: the run then costs what it costs without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from diffusers import ModelMixin
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.files import PICKLE_SUFFIXES, refuse_pickle
from ditflow.models.trust import check_safetensors

FILE = "pytorch_lora_weights.safetensors"  # in a folder


def add_lora(transformer: ModelMixin, given: str, read: Callable[..., dict[str, Tensor]]) -> None:
    """Merge `FILE_OR_ID[:scale]` into the weights; `read` is the family's `lora_state_dict`.

    Raises DitflowError where it cannot be read or does not fit the model.
    """
    source, scale = check_lora(given)
    path = Path(source)
    where = {"weight_name": path.name} if path.suffix else {}
    try:
        weights = read(str(path.parent if path.suffix else source), use_safetensors=True, **where)
        before = set(getattr(transformer, "peft_config", {}))
        transformer.load_lora_adapter(weights, prefix="transformer")
    except Exception as error:  # names and shapes are the file's: the libraries raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DitflowError(f"--lora {source} does not fit this model: {reason}") from None
    if set(getattr(transformer, "peft_config", {})) == before:
        raise DitflowError(f"--lora {source}: holds no weights for this transformer's layers")
    transformer.fuse_lora(lora_scale=scale)
    transformer.unload_lora()


def check_lora(given: str) -> tuple[str, float]:
    """The source and the scale of `FILE_OR_ID[:scale]`; raises DitflowError for what cannot be read."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise DitflowError("--lora needs peft: pip install 'ditflow[lora]'") from None
    source, scale = split_scale(given)
    path = Path(source)
    if not math.isfinite(scale):
        raise DitflowError(f"--lora {given}: {scale} is no scale; give a number, such as 0.8")
    if source and path.is_dir():
        _check_file(_in_folder(path))
    elif path.suffix:
        _check_file(path)
    elif source.count("/") != 1:
        raise DitflowError(f"--lora {source!r}: give a .safetensors file, a folder or OWNER/NAME")
    return source, scale


def split_scale(given: str) -> tuple[str, float]:
    """`name:0.8` as name and scale; a scale left out is 1."""
    source, colon, scale = given.rpartition(":")
    if colon:
        try:
            return source, float(scale)
        except ValueError:
            pass
    return given, 1.0


def _in_folder(folder: Path) -> Path:
    """A folder's LoRA file, or the pickle that is there in its place."""
    if (folder / FILE).exists():
        return folder / FILE
    return next((path for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES), folder / FILE)


def _check_file(path: Path) -> None:
    if path.suffix in PICKLE_SUFFIXES:
        refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise DitflowError(f"--lora {path}: only .safetensors files are read")
    if not path.is_file():
        raise DitflowError(f"--lora {path}: no such file")
    try:
        check_safetensors(path)
    except (OSError, ValueError) as error:
        raise DitflowError(f"--lora {path} is damaged ({error}): fetch it again") from None
