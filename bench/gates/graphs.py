"""Graph breaks that torch.compile finds in what is compiled, and in the whole way to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

from bench.gates.gate import MODELS, Gate, Metrics
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.plain import PlainRunner
from ditflow.models.cogvideox.transformer import CogVideoX, Pieces
from ditflow.models.protocols import Inputs, Until
from ditflow.settings import Settings
from ditflow.settings.settings import shipped

# shapes decide no break: the real models' kinds of layers, small
SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 16}
SMALL |= {"text_embed_dim": 12, "max_text_seq_length": 10}
FRAMES, HEIGHT, WIDTH = 3, 8, 12  # of latents


def gates() -> dict[str, Gate]:
    return {"graphs": measure}


def measure() -> dict[str, Metrics]:
    found = {}
    for model in MODELS:
        for name, (call, given) in pieces(model).items():
            torch._dynamo.reset()
            found[f"graphs/{model}/{name}"] = {"graph_breaks": breaks(call, *given)}
    return found


def breaks(call: Callable, *given: Any) -> int:
    return torch._dynamo.explain(call)(*given).graph_break_count


def pieces(model: str) -> dict[str, tuple[Callable, tuple]]:
    """Functions to compile, with their arguments."""
    config = shipped(f"models/{model}.yaml")["transformer"] | SMALL
    backbone = CogVideoX(CogVideoXTransformer3DModel.from_config(config))
    latents = torch.randn(1, FRAMES, backbone.config.in_channels, HEIGHT, WIDTH)
    grid = backbone.grid(latents)
    prompt = torch.randn(1, backbone.config.max_text_seq_length, backbone.config.text_embed_dim)
    inputs = Inputs(latents, prompt, torch.tensor([601]), backbone.embedding(grid))
    runner, until = PlainRunner(backbone), Until("query_key", (1,))
    loss = FlowLoss(runner.features(inputs, {}, until), grid, Settings(model=model))

    def guided(latents: torch.Tensor) -> torch.Tensor:
        return loss(1, runner.read(replace(inputs, latents=latents), {}, until)[1])

    block, stream = backbone.blocks[0], backbone.embed(inputs)
    attention = backbone.prepare(0, stream)
    arguments = {
        "prepare": (block, stream),
        "add_attention": (block, stream, attention, backbone.attention(attention)),
        "feed_forward": (block, stream),
        "hidden_layer": (block, stream.video.requires_grad_(), stream.time, 0),
    }
    found = {name: (getattr(Pieces(), name), given) for name, given in arguments.items()}
    return found | {"guided": (guided, (latents.requires_grad_(),))}
