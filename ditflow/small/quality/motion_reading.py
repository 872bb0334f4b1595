"""Measure how well each block reads motion: its hard motion flow against the truth of made clips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from ditflow.guidance.targets import clip_features
from ditflow.memory.plain import PlainRunner
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Capture
from ditflow.small.clips import MadeClip
from ditflow.small.truth import true_flow
from ditflow_kernels import motion_flow


class Reading(NamedTuple):
    """How well a block's flow agrees with the truth, over all pairs of different latent frames."""

    correlation: float  # with the truth, of both components, over tokens inside the shape
    stray: float  # share of background tokens that seem to move


@torch.no_grad()
def read_blocks(folder: ModelFolder, clips: Iterable[MadeClip]) -> list[Reading]:
    """Read every block of the model, in order."""
    transformer, autoencoder = folder.transformer(), folder.autoencoder()
    runner, words = PlainRunner(transformer), folder.text_encoder().encode(folder.tokenise([""]))
    capture = Capture("query_key", tuple(range(folder.depth)))
    found, truths, insides = [], [], []
    for clip in clips:
        latents = autoencoder.encode(torch.from_numpy(clip.frames))
        grid = transformer.grid(latents)
        features = clip_features(runner, capture, latents, words, transformer.embedding(grid))
        found.append(
            [motion_flow(*features[block], grid, 1.0, hard=True).numpy() for block in capture.blocks]
        )
        spans = folder.family.latent_spans(len(clip.frames))
        flow, inside = true_flow(clip.centroids, clip.scene.radii, clip.frames.shape[2], grid, spans)
        truths.append(flow)
        insides.append(np.broadcast_to(inside[:, None], flow.shape[:3]))
    different = ~np.eye(grid.frames, dtype=bool)
    flows, truth, inside = (np.stack(arrays) for arrays in (found, truths, insides))
    flows, truth, inside = flows[:, :, different], truth[:, different], inside[:, different]
    return [_reading(flows[:, block], truth, inside) for block in capture.blocks]


def _reading(flow: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> Reading:
    correlation = np.corrcoef(flow[inside].ravel(), truth[inside].ravel())[0, 1]
    return Reading(float(correlation), float((flow[~inside] != 0).any(axis=-1).mean()))
