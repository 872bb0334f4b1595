"""Tiny Wan transformers with random weights, and what a test needs to run one."""

import torch
from diffusers import WanTransformer3DModel

from ditflow.models.protocols import Inputs
from ditflow.models.wan.names import original_name
from ditflow.models.wan.transformer import WanTransformer

TEXT_TOKENS, TEXT_CHANNELS = 512, 12


def tiny_wan(layers=3, seed=0, **changes):
    """diffusers' Wan transformer with random weights: no parameter is zero or one, so each matters."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": TEXT_CHANNELS,
        "freq_dim": 16,
        "ffn_dim": 40,
        "num_layers": layers,
        "rope_max_seq_len": 32,
    }
    torch.manual_seed(seed)
    model = WanTransformer3DModel(**config | changes)
    for name, parameter in model.named_parameters():
        is_gain = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if is_gain else 0.0, std=0.2)
    return model.eval()


def wan_backbone(layers=3, dtype=torch.float32, **changes):
    """The project's wrapper around a tiny transformer."""
    return WanTransformer(tiny_wan(layers, **changes).to(dtype))


def wan_inputs(transformer, frames=3, height=8, width=12):
    """Inputs of a forward; height and width are in latent pixels."""
    latents = torch.randn(1, frames, 4, height, width)
    prompt = torch.randn(1, TEXT_TOKENS, TEXT_CHANNELS)
    embedding = transformer.embedding(transformer.grid(latents))
    return Inputs(latents, prompt, torch.tensor([601.0]), embedding)


def diffusers_prediction(network, inputs, timestep=None):
    """The prediction of diffusers' own forward, [1, frames, channels, height, width]."""
    latents = inputs.latents.transpose(1, 2).to(network.dtype)
    timestep = inputs.timestep if timestep is None else timestep
    return network(latents, timestep, inputs.prompt.to(network.dtype)).sample.transpose(1, 2)


def original_parameter(name):
    """A parameter's name in Wan's original code, by diffusers' name."""
    layer, _, own = name.rpartition(".")
    return f"{original_name(layer)}.{own}" if own in ("weight", "bias") else original_name(name)
