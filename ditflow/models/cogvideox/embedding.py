"""CogVideoX's positional embeddings, rotary (5B) and additive (2B), on any grid."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from einops import rearrange
from torch import Tensor

from ditflow.models.protocols import Grid


def positional_embedding(config, grid: Grid) -> Tensor:
    """The native embedding of the video tokens, float32; text tokens have none.

    `config` is the transformer's. Rotary: [2 (q, k), 2 (cos, sin), S, head_dim]; queries and keys have equal
    values, which can be optimised separately. Additive: [1, S, channels].
    """
    return _rotary(config, grid) if config.use_rotary_positional_embeddings else _additive(config, grid)


def _rotary(config, grid: Grid) -> Tensor:
    size = (grid.height, grid.width)
    base = (config.sample_width // config.patch_size, config.sample_height // config.patch_size)
    cos_sin = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim,
        crops_coords=get_resize_crop_region_for_grid(size, *base),
        grid_size=size,
        temporal_size=grid.frames,
    )
    return torch.stack([torch.stack(cos_sin)] * 2).float()


def _additive(config, grid: Grid) -> Tensor:
    table = get_3d_sincos_pos_embed(
        config.num_attention_heads * config.attention_head_dim,
        (grid.width, grid.height),
        grid.frames,
        config.spatial_interpolation_scale,
        config.temporal_interpolation_scale,
        output_type="pt",
    )
    return rearrange(table, "f n c -> 1 (f n) c").float()
