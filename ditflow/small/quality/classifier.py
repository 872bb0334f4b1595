"""Classify the shape in a video with a small network trained on made clips."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditflow.small.clips import MadeClip
from ditflow.small.sight import Sight, look
from ditflow.small.vocabulary import SHAPES

CROP = 24  # pixels
REACH = 0.95  # half a crop's side, as a multiple of the square root of the shape's area
STEPS, BATCH = 300, 64


def train_classifier(clips: Iterable[MadeClip]) -> nn.Module:
    """Train a network on these clips that gives crops [n, 1, 24, 24] a score for each of SHAPES."""
    crops, truths = [], []
    for clip in clips:
        found = crops_of(look(clip.frames))
        crops.append(found)
        truths += [SHAPES.index(clip.scene.shape)] * len(found)
    images, labels = torch.cat(crops), torch.tensor(truths)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 5 * 5, len(SHAPES))),
        )
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(STEPS):
            chosen = torch.randint(len(images), (BATCH,))
            optimiser.zero_grad()
            F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


def classify(network: nn.Module, sight: Sight) -> str | None:
    """The likeliest of SHAPES over all frames; None if no object is seen."""
    crops = crops_of(sight)
    return SHAPES[int(network(crops).log_softmax(dim=1).mean(dim=0).argmax())] if len(crops) else None


def crops_of(sight: Sight) -> Tensor:
    """The object of each frame that has one, centred and scaled to one size: [crops, 1, 24, 24]."""
    crops = []
    steps = np.linspace(-1, 1, CROP)
    for coverage, piece, centroid in zip(sight.coverage, sight.pieces, sight.centroids, strict=True):
        if not piece.any():
            continue
        reach = REACH * np.sqrt(piece.sum())
        height, width = coverage.shape
        x = (centroid[0] + reach * steps + 0.5) / width * 2 - 1
        y = (centroid[1] + reach * steps + 0.5) / height * 2 - 1
        places = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1)).float()
        picture = torch.from_numpy(coverage).float()
        crops.append(F.grid_sample(picture[None, None], places[None], align_corners=False))
    return torch.cat(crops) if crops else torch.empty(0, 1, CROP, CROP)
