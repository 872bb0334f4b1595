"""The names of Wan's layers in its original code, as most of its LoRAs and GGUF files have them."""

from __future__ import annotations

import re

ORIGINAL = (  # (part of diffusers' name, what it is called there)
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.to_out\.0$", ".o"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"\.norm2$", ".norm3"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^proj_out$", "head.head"),
)


def original_name(layer: str) -> str:
    """What a layer, or a parameter of none, with this name in diffusers is called in the original code."""
    for pattern, name in ORIGINAL:
        layer = re.sub(pattern, name, layer)
    return layer
