"""Small Wan pipelines of the four published kinds, with random weights in which every weight matters."""

import math

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from ditflow.small.pipeline import write_tokenizer
from ditflow.small.vocabulary import vocabulary_size

TEXT_CHANNELS = 12
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT_CHANNELS,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 5,
    "rope_max_seq_len": 64,
}
VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, -0.2, 0.3, -0.4],
    "latents_std": [0.5, 0.7, 0.9, 1.1],
    "scale_factor_spatial": 4,
}
PATCHED_VAE = {  # as Wan 2.2 TI2V-5B: pixels are put together first, blocks have residuals
    "base_dim": 8,
    "decoder_base_dim": 12,
    "z_dim": 6,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, -0.2, 0.3, -0.4, 0.5, 0.0],
    "latents_std": [0.5, 0.7, 0.9, 1.1, 1.3, 0.6],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 8,
}
KINDS = {  # what each changes
    "wan-1.3b": {},
    "wan-14b": {"transformer": {"num_attention_heads": 3, "num_layers": 4}, "flow_shift": 5.0},
    "wan-5b": {
        "transformer": {"in_channels": 6, "out_channels": 6},
        "vae": PATCHED_VAE,
        "pipeline": {"expand_timesteps": True},
    },
    "wan-a14b": {"pipeline": {"boundary_ratio": 0.875}},
}


def write_wan(folder, kind="wan-1.3b", seed=0):
    """Write one to `folder`, which must not exist."""
    changes = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        parts = {
            "transformer": _randomised(WanTransformer3DModel(**TRANSFORMER | changes.get("transformer", {}))),
            "vae": _randomised(AutoencoderKLWan(**changes.get("vae", VAE))),
            "text_encoder": _text_encoder(),
            "scheduler": scheduler(changes.get("flow_shift", 3.0)),
        }
        if kind == "wan-a14b":
            parts["transformer_2"] = _randomised(WanTransformer3DModel(**TRANSFORMER))
    folder.mkdir(parents=True)
    write_tokenizer(folder / "tokenizer")
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    pipeline = WanPipeline(tokenizer=tokenizer, **parts, **changes.get("pipeline", {}))
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    pipeline.save_config(folder)


def scheduler(shift=3.0):
    """With the configuration of the published models."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )


def _text_encoder():
    config = UMT5Config(
        vocab_size=vocabulary_size(),
        d_model=TEXT_CHANNELS,
        d_kv=6,
        d_ff=20,
        num_layers=3,
        num_heads=2,
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config).eval()


@torch.no_grad()
def _randomised(network: nn.Module) -> nn.Module:
    """Weights that keep a signal's variance, biases of about 0.1, and gains near 1."""
    for name, weights in network.named_parameters():
        is_gain = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        if is_gain or weights.ndim == 1:
            nn.init.normal_(weights, mean=1.0 if is_gain else 0.0, std=0.1)
        else:
            nn.init.normal_(weights, std=1 / math.sqrt(weights[0].numel()))
    return network.eval()
