"""TensorRT for forwards without gradient: the parts of a block around attention, and the VAE's decoder.

It is a backend of torch.compile. PyTorch runs the operators that TensorRT does not know.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ditflow.errors import DitflowError, SettingsError, first_line
from ditflow.models.protocols import Autoencoder, Transformer

BACKEND = "torch_tensorrt"  # the package, and its name in torch.compile


def check_engine(engine: str, needs_gradient: bool, device: torch.device) -> None:
    """Refuse an engine that this run cannot use. Imports nothing heavy, so it can run first.

    Raises SettingsError if the run's other settings rule it out, DitflowError if this machine does.
    """
    if engine == "torch":
        return
    if needs_gradient:
        raise SettingsError(
            "--engine tensorrt has no gradient, and this run optimises: use it with `ditflow inject`, "
            "--loss x0 or --no-guidance"
        )
    if device.type != "cuda":
        raise DitflowError(
            f"--engine tensorrt needs a CUDA GPU, and this run computes on {device.type}; use --engine torch"
        )
    if not find_spec(BACKEND):
        raise DitflowError(
            '--engine tensorrt: torch_tensorrt is not installed; pip install "ditflow[tensorrt]", '
            "or use --engine torch"
        )


def denoise_with_tensorrt(transformer: Transformer) -> None:
    """Compile everything in a block but its attention with TensorRT. Only for forwards without gradient."""
    _load()
    transformer.compile_pieces(BACKEND)


def decode_with_tensorrt(autoencoder: Autoencoder) -> None:
    """Compile the decoder with TensorRT: one engine for each shape of tile."""
    _load()
    autoencoder.compile_decoder(BACKEND)


def _load() -> None:
    try:
        import torch_tensorrt  # noqa: F401  registers the backend
    except (ImportError, OSError, RuntimeError) as error:
        reason = first_line(error)
        raise DitflowError(
            f"--engine tensorrt: torch_tensorrt cannot be loaded ({reason}); use --engine torch"
        ) from None
