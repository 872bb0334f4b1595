"""A pipeline folder of the toy with random weights, in which every weight matters."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import nn

from toy_family.autoencoder import ToyVAE
from toy_family.family import ToyFamily
from toy_family.text import ByteTokenizer, ToyTextConfig, ToyTextModel
from toy_family.transformer import ToyTransformer3DModel


def write_toy(folder: Path, seed: int = 0) -> None:
    """Write one to `folder`, which must not exist."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": randomised(ToyTransformer3DModel()),
            "vae": randomised(ToyVAE()),
            "text_encoder": randomised(ToyTextModel(ToyTextConfig())),
        }
    folder.mkdir(parents=True)
    for name, network in parts.items():
        network.save_pretrained(folder / name)
    ByteTokenizer(first=1).save_pretrained(folder / "tokenizer")
    _write(folder / "scheduler" / "scheduler_config.json", {"shift": 3.0, "renewed": 0.1})
    _write(folder / "model_index.json", {"_class_name": ToyFamily.pipeline})


@torch.no_grad()
def randomised(network: nn.Module) -> nn.Module:
    """Weights that keep a signal's variance; biases and gains of norms are near but not at the identity."""
    for name, weights in network.named_parameters():
        if weights.ndim == 1:
            mean = 1.0 if name.endswith("weight") else 0.0
            nn.init.normal_(weights, mean=mean, std=0.1)
        else:
            nn.init.normal_(weights, std=1 / math.sqrt(weights[0].numel()))
    return network.eval()


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
