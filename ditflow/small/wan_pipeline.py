"""The configuration of `small-wan`, and how to write it as a Wan pipeline folder."""

from pathlib import Path

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from ditflow.small.pipeline import COMPRESSION, TEXT_WIDTH, randomised, write_folder

LATENT_CHANNELS = 8
PROMPT_LENGTH = 512  # tokens of a run's prompts
FLOW_SHIFT = 3.0

VAE = dict(
    is_residual=True,  # as in Wan 2.2, which learns much faster than the other kind
    base_dim=16,
    decoder_base_dim=16,
    z_dim=LATENT_CHANNELS,
    dim_mult=[1, 2, 2],
    num_res_blocks=1,
    temperal_downsample=[True, True],
    latents_mean=[0.0] * LATENT_CHANNELS,
    latents_std=[1.0] * LATENT_CHANNELS,
    scale_factor_temporal=4,
    scale_factor_spatial=COMPRESSION,
)
TRANSFORMER = dict(
    num_attention_heads=2,
    attention_head_dim=64,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    text_dim=TEXT_WIDTH,
    freq_dim=64,
    ffn_dim=512,
    num_layers=6,
    cross_attn_norm=True,
    rope_max_seq_len=64,
)
SCHEDULER = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)


def write_wan_pipeline(
    folder: Path, text_encoder: UMT5EncoderModel, transformer: WanTransformer3DModel, vae: AutoencoderKLWan
) -> None:
    """Write these networks as a Wan pipeline folder; see `write_folder`."""
    networks = {"text_encoder": text_encoder, "transformer": transformer, "vae": vae}
    write_folder(folder, WanPipeline, networks, UniPCMultistepScheduler(**SCHEDULER))


def random_umt5() -> UMT5EncoderModel:
    """The text encoder of `small-wan`; see `random_text_encoder`."""
    return randomised(UMT5EncoderModel, UMT5Config)
