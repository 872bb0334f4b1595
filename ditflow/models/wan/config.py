"""What the configuration files of a Wan pipeline may hold: far more than the published models need."""

from __future__ import annotations

from ditflow.models.t5.config import TOKENIZER, text_encoder_schema
from ditflow.schema import Flag, ListOf, Number, OneOf, OrNull, Schema, Text, Whole

SHARE = Number(0, 1)
CHANNELS = Whole(1, 16_384)

TRANSFORMER = Schema(
    {
        "quantization_config": OneOf((None,)),
        "num_layers": Whole(1, 100),
        "num_attention_heads": Whole(1, 256),
        "attention_head_dim": Whole(6, 1024),
        "in_channels": Whole(1, 1024),
        "out_channels": OrNull(Whole(1, 1024)),
        "text_dim": CHANNELS,
        "freq_dim": Whole(2, 16_384),
        "ffn_dim": Whole(1, 1 << 17),
        "patch_size": OneOf(([1, 2, 2],)),
        "rope_max_seq_len": Whole(1, 1 << 16),
        "cross_attn_norm": Flag(),
        "qk_norm": OneOf(("rms_norm_across_heads",)),
        "eps": SHARE,
        # these belong to image-to-video models
        "image_dim": OneOf((None,)),
        "added_kv_proj_dim": OneOf((None,)),
        "pos_embed_seq_len": OneOf((None,)),
    },
    required=("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "text_dim"),
    products={("num_attention_heads", "attention_head_dim"): 16_384},
)
VAE = Schema(
    {
        "quantization_config": OneOf((None,)),
        "base_dim": Whole(1, 8192),
        "decoder_base_dim": OrNull(Whole(1, 8192)),
        "z_dim": Whole(1, 1024),
        "dim_mult": ListOf(Whole(1, 64), 1, 8),
        "num_res_blocks": Whole(1, 16),
        "attn_scales": OneOf(([],)),
        "temperal_downsample": ListOf(Flag(), 0, 7),
        "dropout": SHARE,
        "latents_mean": ListOf(Number(-1e3, 1e3), 1, 1024),
        "latents_std": ListOf(Number(1e-3, 1e3), 1, 1024),
        "is_residual": Flag(),
        "in_channels": Whole(3, 768),
        "out_channels": Whole(3, 768),
        "patch_size": OrNull(Whole(1, 16)),
        "clip_output": Flag(),
        "scale_factor_temporal": OneOf((4,)),
        "scale_factor_spatial": Whole(1, 128),
    },
    required=("z_dim",),
    products={("base_dim", "z_dim"): 1 << 20},
)
SCHEDULER = Schema(
    {
        "_class_name": OneOf(("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")),
        "num_train_timesteps": Whole(1, 10_000),
        "flow_shift": Number(0.01, 100),
        "shift": Number(0.01, 100),
        "prediction_type": OneOf(("flow_prediction",)),
        "use_flow_sigmas": OneOf((True,)),
        "solver_order": Whole(1, 3),
        "solver_type": OneOf(("bh1", "bh2")),
        "solver_p": OneOf((None,)),
        "predict_x0": OneOf((True,)),
        "lower_order_final": Flag(),
        "disable_corrector": ListOf(Whole(0, 10_000), 0, 10_000),
        "final_sigmas_type": OneOf(("zero",)),
        "timestep_spacing": Text(),  # not used with flow sigmas
        # these would change the noise levels or the prediction
        **dict.fromkeys(
            (
                "thresholding",
                "use_dynamic_shifting",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "invert_sigmas",
                "stochastic_sampling",
                "rescale_betas_zero_snr",
            ),
            OneOf((None, False)),
        ),
        "shift_terminal": OneOf((None,)),
    }
)
INDEX = Schema({"boundary_ratio": OrNull(SHARE), "expand_timesteps": OrNull(Flag())})
SCHEMAS = {
    "index": INDEX,
    "transformer": TRANSFORMER,
    "transformer_2": TRANSFORMER,
    "vae": VAE,
    "text_encoder": text_encoder_schema("umt5"),
    "tokenizer": TOKENIZER,
    "scheduler": SCHEDULER,
}
