"""Measure how well each block reads motion: its hard motion flow against the truth of made clips."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ditflow.guidance.block_scores import BlockScore, score_block
from ditflow.guidance.targets import clip_flows
from ditflow.memory.plain import PlainRunner
from ditflow.models.loading import ModelFolder
from ditflow.settings import Settings
from ditflow.small.clips import MadeClip
from ditflow.small.truth import true_flow


def read_blocks(folder: ModelFolder, clips: Iterable[MadeClip]) -> list[BlockScore]:
    """Score every block of the model, in order; the moving tokens are those inside the shape."""
    transformer, autoencoder = folder.transformer(), folder.autoencoder()
    runner, words = PlainRunner(transformer), folder.text_encoder().encode(folder.tokenise([""]))
    settings, blocks = Settings(model=settings_of(folder), reference="hard"), range(folder.depth)
    found, truths, insides = [], [], []
    for clip in clips:
        latents = autoencoder.encode(torch.from_numpy(clip.frames))
        found.append([flow.numpy() for flow in clip_flows(runner, settings, blocks, latents, words).values()])
        grid, spans = transformer.grid(latents), folder.family.latent_spans(len(clip.frames))
        truth, inside = true_flow(clip.centroids, clip.scene.radii, clip.frames.shape[2], grid, spans)
        truths.append(truth)
        insides.append(inside)
    flows, truth, inside = (np.stack(arrays) for arrays in (found, truths, insides))
    return [score_block(flows[:, block], truth, inside) for block in blocks]


def settings_of(folder: ModelFolder) -> str:
    """The shipped model whose settings a small model is run with."""
    return "small-wan" if folder.family.pipeline == "WanPipeline" else "small"
