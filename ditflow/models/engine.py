"""TensorRT for what needs no gradient: the pieces of a block that are not attention, and the VAE's decoder.

torch.compile hands its graphs to `torch_tensorrt`, which runs what TensorRT does not know as torch does.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from ditflow.errors import DitflowError, SettingsError
from ditflow.models.compiling import compile_piece

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX

    from ditflow.models.cogvideox.transformer import CogVideoX

BACKEND = "torch_tensorrt"  # the package, and what it calls itself in torch.compile


def check_engine(engine: str, needs_gradient: bool, device: torch.device, streams: bool) -> None:
    """Refuse an engine that cannot do what a run asks of it; imports nothing, so that it can come first.

    `streams`: whether blocks' weights come and go. Raises SettingsError where the run's other settings rule
    it out, DitflowError where this machine does.
    """
    if engine == "torch":
        return
    if needs_gradient:
        raise SettingsError(
            "--engine tensorrt: no gradient comes through it, and this run optimises: "
            "use it with `ditflow inject` or --no-guidance"
        )
    if streams:
        raise SettingsError(
            "--engine tensorrt: needs all weights on the device, and this memory preset streams them: "
            "use a larger --memory, or --engine torch"
        )
    if device.type != "cuda":
        raise DitflowError(
            f"--engine tensorrt: needs a CUDA GPU, and this run computes on {device.type}; use --engine torch"
        )
    if not find_spec(BACKEND):
        raise DitflowError(
            '--engine tensorrt: torch_tensorrt is not installed; pip install "ditflow[tensorrt]", '
            "or use --engine torch"
        )


def denoise_with_tensorrt(backbone: CogVideoX) -> None:
    """Let TensorRT compute all of a block but its attention; forwards without gradient only."""
    from ditflow.models.cogvideox.transformer import Pieces

    _load()
    backbone.pieces = Pieces(*(compile_piece(piece, BACKEND) for piece in Pieces()))


def decode_with_tensorrt(vae: AutoencoderKLCogVideoX) -> None:
    """Let TensorRT compute the decoder: an engine for each shape of tile."""
    _load()
    vae.decoder.compile(backend=BACKEND, dynamic=False)


def _load() -> None:
    try:
        import torch_tensorrt  # noqa: F401  registers the backend
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DitflowError(
            f"--engine tensorrt: torch_tensorrt cannot be loaded ({reason}); use --engine torch"
        ) from None
