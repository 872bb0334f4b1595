"""What the configuration files of a CogVideoX pipeline may hold: far more than the published models need."""

from __future__ import annotations

from ditflow.models.t5.config import TOKENIZER, text_encoder_schema
from ditflow.schema import Flag, ListOf, Number, OneOf, OrNull, Schema, Text, Whole

SHARE = Number(0, 1)
LAYERS, HEADS, CHANNELS = Whole(1, 100), Whole(1, 256), Whole(1, 16_384)

TRANSFORMER = Schema(
    {
        "quantization_config": OneOf((None,)),
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "attention_head_dim": Whole(1, 1024),
        "in_channels": Whole(1, 1024),
        "out_channels": OrNull(Whole(1, 1024)),
        "time_embed_dim": CHANNELS,
        "text_embed_dim": CHANNELS,
        "max_text_seq_length": Whole(1, 4096),
        "sample_width": Whole(1, 1024),
        "sample_height": Whole(1, 1024),
        "sample_frames": Whole(1, 1024),
        "patch_size": Whole(1, 16),
        "temporal_compression_ratio": OneOf((4,)),
        "spatial_interpolation_scale": Number(1e-3, 1e3),
        "temporal_interpolation_scale": Number(1e-3, 1e3),
        "use_rotary_positional_embeddings": Flag(),
        "attention_bias": Flag(),
        "norm_elementwise_affine": Flag(),
        "flip_sin_to_cos": Flag(),
        "patch_bias": Flag(),
        "freq_shift": Number(0, 1),
        "norm_eps": SHARE,
        "dropout": SHARE,
        "activation_fn": Text(),
        "timestep_activation_fn": Text(),
        # these belong to CogVideoX 1.5 and to image-to-video models
        "patch_size_t": OneOf((None,)),
        "ofs_embed_dim": OneOf((None,)),
        "use_learned_positional_embeddings": OneOf((None, False)),
    },
    required=(
        "num_layers",
        "text_embed_dim",
        "max_text_seq_length",
        "use_rotary_positional_embeddings",
    ),
    products={
        ("num_attention_heads", "attention_head_dim"): 16_384,
        # the size of a positional embedding, times 16 for patches and compression
        (
            "sample_frames",
            "sample_height",
            "sample_width",
            "num_attention_heads",
            "attention_head_dim",
        ): 1 << 35,
    },
)
VAE = Schema(
    {
        "quantization_config": OneOf((None,)),
        "scaling_factor": Number(1e-3, 1e3),
        "block_out_channels": ListOf(Whole(1, 8192), 1, 8),
        "down_block_types": ListOf(Text(), 1, 8),
        "up_block_types": ListOf(Text(), 1, 8),
        "layers_per_block": Whole(1, 16),
        "in_channels": OneOf((3,)),
        "out_channels": OneOf((3,)),
        "latent_channels": Whole(1, 1024),
        "norm_num_groups": Whole(1, 8192),
        "norm_eps": SHARE,
        "act_fn": Text(),
        "temporal_compression_ratio": OneOf((4,)),
        "sample_height": Whole(1, 1 << 16),
        "sample_width": Whole(1, 1 << 16),
        "use_quant_conv": Flag(),
        "use_post_quant_conv": Flag(),
        # these would change the latents' scale, and are not used
        "shift_factor": OneOf((None, 0)),
        "latents_mean": OneOf((None,)),
        "latents_std": OneOf((None,)),
        "invert_scale_latents": OneOf((None, False)),
    },
    required=("scaling_factor", "block_out_channels"),
)
SCHEDULER = Schema(
    {
        "_class_name": OneOf(("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")),
        "num_train_timesteps": Whole(1, 10_000),
        "beta_start": Number(1e-9, 0.999),
        "beta_end": Number(1e-9, 0.999),
        "beta_schedule": OneOf(("scaled_linear", "linear", "squaredcos_cap_v2")),
        "trained_betas": OrNull(ListOf(Number(1e-9, 0.999), 1, 10_000)),
        "prediction_type": OneOf(("v_prediction", "epsilon", "sample")),
        "timestep_spacing": OneOf(("trailing", "leading", "linspace")),
        "steps_offset": Whole(0, 10_000),
        "snr_shift_scale": Number(1e-3, 1e3),
        "clip_sample": Flag(),
        "set_alpha_to_one": Flag(),
        "rescale_betas_zero_snr": Flag(),
        "clip_sample_range": Number(1e-3, 1e6),
        "sample_max_value": Number(1e-3, 1e6),
    }
)
SCHEMAS = {
    "index": Schema(),
    "transformer": TRANSFORMER,
    "vae": VAE,
    "text_encoder": text_encoder_schema("t5"),
    "tokenizer": TOKENIZER,
    "scheduler": SCHEDULER,
}
