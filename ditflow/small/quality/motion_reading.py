"""How well each block sees motion: its hard motion flow against the true motion of made clips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce

from ditflow.backbone.loading import ModelFolder
from ditflow.backbone.runner import Grid, Until
from ditflow.backbone.text import encode_tokens, tokenise
from ditflow.backbone.vae import encode
from ditflow.guidance.prepare import clip_features
from ditflow.memory.plain import PlainRunner
from ditflow.small.clips import MadeClip
from ditflow_kernels import motion_flow


class Reading(NamedTuple):
    """A block's flow beside the truth, over all pairs of different latent frames."""

    correlation: float  # of both components, in tokens inside the shape
    stray: float  # share of background tokens that seem to move


def true_flow(
    clip: MadeClip, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:  # [frames, frames, height * width, 2], [frames, height * width]
    """Where the matter in each token goes, (x, y) in patches, and which tokens are inside the shape.

    A latent frame is the mean of its video frames; outside the shape nothing moves.
    """
    patch = clip.frames.shape[2] / grid.width  # pixels
    centres = reduce((clip.centroids + 0.5) / patch - 0.5, "(f t) c -> f c", "mean", f=grid.frames)
    radii = reduce(clip.scene.radii / patch, "(f t) -> f", "mean", f=grid.frames)
    y, x = np.mgrid[: grid.height, : grid.width]
    offsets = np.stack([x.ravel(), y.ravel()], axis=-1) - centres[:, None]  # [frames, tokens, 2]
    inside = np.linalg.norm(offsets, axis=-1) < np.maximum(radii, 0.71)[:, None]  # at least one token
    growth = radii[None, :] / radii[:, None]  # [query frame, key frame]
    moved = rearrange(centres, "k c -> 1 k 1 c") - rearrange(centres, "q c -> q 1 1 c")
    flow = moved + (growth[..., None, None] - 1) * offsets[:, None]
    return flow * inside[:, None, :, None], inside


@torch.no_grad()
def read_blocks(folder: ModelFolder, clips: Iterable[MadeClip]) -> list[Reading]:
    """A reading for every block of the model, in order."""
    runner, vae = PlainRunner(folder.backbone()), folder.vae()
    tokenizer, encoder = folder.tokenizer(), folder.text_encoder()
    config = folder.config("transformer")
    until = Until("query_key", tuple(range(config["num_layers"])))
    found, truths, insides = [], [], []
    for clip in clips:
        latents = encode(vae, torch.from_numpy(clip.frames))
        grid = runner.backbone.grid(latents)
        words = encode_tokens(encoder, tokenise(tokenizer, [""], config["max_text_seq_length"]))
        features = clip_features(runner, until, latents, words, runner.backbone.embedding(grid))
        found.append([motion_flow(*features[block], grid, 1.0, hard=True).numpy() for block in until.blocks])
        flow, inside = true_flow(clip, grid)
        truths.append(flow)
        insides.append(np.broadcast_to(inside[:, None], flow.shape[:3]))
    different = ~np.eye(grid.frames, dtype=bool)
    flows, truth, inside = (np.stack(arrays) for arrays in (found, truths, insides))
    flows, truth, inside = flows[:, :, different], truth[:, different], inside[:, different]
    return [_reading(flows[:, block], truth, inside) for block in until.blocks]


def _reading(flow: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> Reading:
    correlation = np.corrcoef(flow[inside].ravel(), truth[inside].ravel())[0, 1]
    return Reading(float(correlation), float((flow[~inside] != 0).any(axis=-1).mean()))
