"""One guided step of CogVideoX-5B, random weights: an update of the latents, and the denoising after it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch

from bench.passes import TEMPERATURE
from bench.timing import GIB, Meter
from ditflow_kernels import backends

LATENTS = (1, 6, 16, 60, 90)  # 24 frames of 480 x 720
TEXT_TOKENS, TEXT_CHANNELS, GUIDANCE_BLOCK = 226, 4096, 20
NEEDED_BYTES = 44 * GIB  # 11 of weights, 27 of activations, some room
BACKENDS = ("triton", "chunked")


def why_not(meter: Meter, seconds_left: float) -> str | None:
    """Why a guided step cannot be measured here, if so."""
    if find_spec("diffusers") is None or find_spec("transformers") is None:
        return "diffusers is not installed"
    if meter.free_bytes() < NEEDED_BYTES:
        return f"needs {NEEDED_BYTES // GIB} GiB of free memory, {meter.free_bytes() / GIB:.0f} are there"
    if seconds_left < 100:
        return "no time left"
    return None


def guided_step(
    meter: Meter, config: dict | None = None, latents=LATENTS, block=GUIDANCE_BLOCK
) -> dict[str, Any]:
    """By backend: milliseconds of the update and of the denoising, peak memory of the update."""
    from ditflow.backbone.cogvideox import CogVideoX
    from ditflow.backbone.runner import Inputs, QueryKey, Until
    from ditflow.memory.plain import PlainRunner
    from ditflow.settings import shipped
    from ditflow_kernels import motion_flow, motion_flow_loss

    config = config or shipped("models/5b.yaml")["transformer"]
    backbone = CogVideoX(random_transformer(config, meter.device))
    runner = PlainRunner(backbone)
    draw = torch.Generator(meter.device).manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, device=meter.device)

    clip = numbers(*latents)
    grid = backbone.grid(clip)
    inputs = Inputs(
        latents=numbers(*latents),
        prompt=numbers(1, TEXT_TOKENS, backbone.config.text_embed_dim),
        timestep=torch.full((1,), 900, device=meter.device),
        embedding=backbone.embedding(grid),
    )
    until = Until("query_key", (block,))
    features = runner.features(Inputs(clip, inputs.prompt, inputs.timestep, inputs.embedding), {}, until)
    target = motion_flow(*features[block], grid, TEMPERATURE, hard=True)
    del features

    def loss(_: int, read: QueryKey) -> torch.Tensor:
        return motion_flow_loss(*read, target, grid, TEMPERATURE)

    def update() -> Any:
        return runner.gradient(loss, "latents", inputs, {}, until, 1.0)

    def denoise() -> Any:
        # with and without the prompt
        return runner.forward([inputs, inputs], {})

    found = {}
    for backend in BACKENDS:
        with patch.dict(backends.FASTEST, {meter.device.type: backend}):
            found[backend] = {
                "update_ms": meter.milliseconds([update]),
                "denoise_ms": meter.milliseconds([denoise]),
                "update_peak_bytes": meter.peak_bytes(update),
            }
    return found


def random_transformer(config: dict, device: torch.device) -> Any:
    """Weights as the layers initialise themselves, bf16 from the start."""
    from diffusers import CogVideoXTransformer3DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return CogVideoXTransformer3DModel(**config)
    finally:
        torch.set_default_dtype(before)
