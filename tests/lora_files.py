"""LoRA files for the tiny transformer."""

import json

import torch
from safetensors.torch import save_file
from tiny_models import tiny_transformer

LAYERS = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_out.0", "proj_out")
RANK = 4


def peft_weights(layers=LAYERS, rank=RANK):
    """(down, up) by layer."""
    modules = dict(tiny_transformer().named_modules())
    generator = torch.Generator().manual_seed(3)
    found = {}
    for layer in layers:
        outputs, inputs = modules[layer].weight.shape
        found[layer] = (
            torch.randn(rank, inputs, generator=generator),
            torch.randn(outputs, rank, generator=generator),
        )
    return found


def in_layout(weights, before="transformer.", down="lora_A.weight", up="lora_B.weight", dots=True):
    tensors = {}
    for layer, pair in weights.items():
        name = before + (layer if dots else layer.replace(".", "_"))
        tensors |= dict(zip((f"{name}.{down}", f"{name}.{up}"), pair, strict=True))
    return tensors


def saved(path, tensors, header=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, header)
    return str(path)


def diffusers_header(**settings):
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in settings.items()}),
    }
