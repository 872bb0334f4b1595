"""LoRA weights added to a transformer, once and for all: the run then costs what it costs without them."""

from __future__ import annotations

from pathlib import Path

from diffusers import CogVideoXTransformer3DModel
from diffusers.loaders import CogVideoXLoraLoaderMixin

from ditflow.errors import DitflowError


def add_lora(transformer: CogVideoXTransformer3DModel, given: str) -> None:
    """Merge `FILE_OR_ID[:scale]` into the weights.

    Raises DitflowError where it cannot be read or does not fit the model.
    """
    source, scale = check_lora(given)
    path = Path(source)
    where = {"weight_name": path.name} if path.suffix else {}
    try:
        weights = CogVideoXLoraLoaderMixin.lora_state_dict(
            str(path.parent if path.suffix else source), use_safetensors=True, **where
        )
        before = set(getattr(transformer, "peft_config", {}))
        transformer.load_lora_adapter(weights, prefix="transformer")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DitflowError(f"--lora {source}: {str(error).strip().splitlines()[0]}") from None
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
    if path.suffix and path.suffix != ".safetensors":
        raise DitflowError(f"--lora {source}: only .safetensors files are read; pickled weights can run code")
    if path.suffix and not path.is_file():
        raise DitflowError(f"--lora {source}: no such file")
    if not source or (not path.suffix and not path.is_dir() and source.count("/") != 1):
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
