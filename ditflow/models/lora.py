"""Merges LoRA weights into a transformer when it is loaded, so that the run itself costs nothing extra."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from diffusers import ModelMixin
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.files import PICKLE_SUFFIXES, refuse_pickle
from ditflow.models.trust import check_safetensors

FILE = "pytorch_lora_weights.safetensors"  # in a LoRA's folder


def add_lora(transformer: ModelMixin, given: str, read: Callable[..., dict[str, Tensor]]) -> None:
    """Merge `FILE_OR_ID[:scale]` into the weights; `read` is the family's `lora_state_dict`.

    Raises DitflowError if the LoRA cannot be read or does not fit the model.
    """
    source, scale = check_lora(given)
    path = Path(source)
    where = {"weight_name": path.name} if path.suffix else {}
    try:
        weights = read(str(path.parent if path.suffix else source), use_safetensors=True, **where)
        before = set(getattr(transformer, "peft_config", {}))
        transformer.load_lora_adapter(weights, prefix="transformer")
    except Exception as error:  # for wrong shapes and names the libraries raise many types of error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DitflowError(f"--lora {source} does not fit this model: {reason}") from None
    if set(getattr(transformer, "peft_config", {})) == before:
        raise DitflowError(
            f"--lora {source}: holds no weights for this transformer's layers; give a LoRA for this model"
        )
    transformer.fuse_lora(lora_scale=scale)
    transformer.unload_lora()


def check_lora(given: str) -> tuple[str, float]:
    """Split `FILE_OR_ID[:scale]` into source and scale. Raises DitflowError if it cannot be read."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise DitflowError('--lora needs peft: pip install "ditflow[lora]"') from None
    source, scale = split_scale(given)
    path = Path(source)
    if not math.isfinite(scale):
        raise DitflowError(f"--lora {given}: the scale {scale} is not a finite number; give one such as 0.8")
    if source and path.is_dir():
        _check_file(_in_folder(path))
    elif path.suffix:
        _check_file(path)
    elif source.count("/") != 1:
        raise DitflowError(f"--lora {source!r}: give a .safetensors file, a folder or OWNER/NAME")
    return source, scale


def split_scale(given: str) -> tuple[str, float]:
    """Split `name:0.8` into name and scale. Without a number after the colon, the scale is 1."""
    source, colon, scale = given.rpartition(":")
    if colon:
        try:
            return source, float(scale)
        except ValueError:
            pass
    return given, 1.0


def _in_folder(folder: Path) -> Path:
    """The path of a folder's LoRA file, or of a pickle if the folder has only that."""
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
        raise DitflowError(f"--lora {path} is damaged ({error}): download it again") from None
