"""What the configuration files of the encoder and of its tokenizer may hold."""

from __future__ import annotations

from ditflow.schema import Either, Flag, Keys, ListOf, MapOf, Number, OneOf, OrNull, Schema, Text, Whole

SHARE = Number(0, 1)
TOKENS = 1_000_000
T5_VOCABULARY = 32_128  # if the configuration does not say
PIECE = Text(1000)  # of a tokenizer's vocabulary
TOKEN = Either(
    (PIECE, Keys({"content": PIECE, "lstrip": Flag(), "rstrip": Flag(), "normalized": Flag()}, ("content",)))
)
LAYERS, HEADS, CHANNELS = Whole(1, 100), Whole(1, 256), Whole(1, 16_384)
TOKENIZER = Schema(
    {
        "model_max_length": Number(1, 1e31),  # transformers writes 1e30 for "no limit"
        "extra_ids": Whole(0, 10_000),
        "additional_special_tokens": OrNull(ListOf(TOKEN, 0, 10_000)),
        "extra_special_tokens": OrNull(Either((ListOf(TOKEN, 0, 10_000), MapOf(TOKEN)))),
        "added_tokens_decoder": OrNull(MapOf(TOKEN, r"\d{1,7}")),
        **dict.fromkeys(("pad_token", "eos_token", "unk_token"), OrNull(TOKEN)),
        # these would replace the vocabulary
        "vocab": OneOf((None,)),
        "_spm_precompiled_charsmap": OneOf((None,)),
    }
)


def text_encoder_schema(model_type: str) -> Schema:
    """What the text encoder's configuration may hold."""
    return Schema(
        {
            "quantization_config": OneOf((None,)),
            "model_type": OneOf((model_type,)),
            "num_layers": LAYERS,
            "num_decoder_layers": OrNull(LAYERS),
            "num_heads": HEADS,
            "d_model": CHANNELS,
            "d_kv": Whole(1, 1024),
            "d_ff": Whole(1, 1 << 17),
            "vocab_size": Whole(1, TOKENS),
            "relative_attention_num_buckets": Whole(4, 4096),
            "relative_attention_max_distance": Whole(1, 1 << 16),
            "layer_norm_epsilon": SHARE,
            "dropout_rate": SHARE,
            "classifier_dropout": SHARE,
            "initializer_factor": Number(0, 1e3),
            "feed_forward_proj": Text(),
            "pad_token_id": OrNull(Whole(0, TOKENS)),
            "eos_token_id": OrNull(Whole(0, TOKENS)),
        }
    )
