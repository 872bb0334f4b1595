"""Motion losses: the difference between the new video's features and the clip's, block by block.

Each loss names the features it reads (`reads`, see `Capture`). It is built from the clip's features in every
guided block; `FlowLoss` from the targets made of them. It is called as `loss(block, features) -> scalar`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from ditflow.models.protocols import Grid, QueryKey
from ditflow.settings import Settings
from ditflow_kernels import motion_flow_loss

ROUNDING = 1e-5  # how far the features of equal frames may be from their mean


class FlowLoss:
    """Mean square difference of the attention motion flow, in square latent patches (DiTFlow, eq. 3-5)."""

    reads: ClassVar[Literal["query_key"]] = "query_key"

    def __init__(
        self,
        targets: dict[int, Tensor],  # [frames (query), frames (key), height * width, 2], of `flow_targets`
        grid: Grid,
        settings: Settings,
    ):
        self.targets, self.grid, self.temperature = targets, grid, settings.temperature
        self.rows = settings.counted_rows

    @property
    def still(self) -> bool:
        """Whether there is nothing to match, such as with a clip that shows no motion."""
        if self.rows == "given":
            return all(target.isnan().all() for target in self.targets.values())
        return not any(target.any() for target in self.targets.values())

    def __call__(self, block: int, features: QueryKey) -> Tensor:
        return motion_flow_loss(*features, self.targets[block], self.grid, self.temperature, rows=self.rows)


class MoftLoss:
    """Cosine distance of frame-centred features, in the channels that carry the most motion (MOFT)."""

    reads: ClassVar[Literal["output"]] = "output"

    def __init__(self, references: dict[int, Tensor], grid: Grid, settings: Settings):
        self.grid = grid
        self.references, self.channels = {}, {}
        for block, features in references.items():
            centred = self._centred(features)  # [frames, patches, channels]
            principal = torch.linalg.svd(centred.flatten(0, 1), full_matrices=False).Vh[0]
            count = max(1, int(settings.moft_channels * principal.numel()))
            self.channels[block] = principal.abs().topk(count).indices
            self.references[block] = centred[..., self.channels[block]]

    @property
    def still(self) -> bool:
        return not any((features.abs() > ROUNDING).any() for features in self.references.values())

    def __call__(self, block: int, features: Tensor) -> Tensor:
        motion = self._centred(features)[..., self.channels[block]]
        return 1 - F.cosine_similarity(motion, self.references[block], dim=-1).mean()

    def _centred(self, features: Tensor) -> Tensor:
        frames = rearrange(features.float(), "(f n) c -> f n c", f=self.grid.frames)
        return frames - frames.mean(dim=0)


class SmmLoss:
    """Cosine distance of differences between frames' spatial means (space-time features, SMM).

    `smm-release` follows the released DiTFlow code: differences are taken from the clip's frame in both
    videos, a frame is also compared with itself, and the cosine is taken over frames for each channel.
    """

    reads: ClassVar[Literal["output"]] = "output"

    def __init__(self, references: dict[int, Tensor], grid: Grid, settings: Settings):
        self.grid, self.released = grid, settings.loss == "smm-release"
        self.references = {block: self._means(features) for block, features in references.items()}

    @property
    def still(self) -> bool:
        return not any(((means - means[:1]).abs() > ROUNDING).any() for means in self.references.values())

    def __call__(self, block: int, features: Tensor) -> Tensor:
        reference, means = self.references[block], self._means(features)  # [frames, channels]
        target = reference[None] - reference[:, None]  # [anchor, frame, channels]
        if self.released:
            return 1 - F.cosine_similarity(means[None] - reference[:, None], target, dim=1).mean()
        motion = means[None] - means[:, None]
        return 1 - F.cosine_similarity(_off_diagonal(motion), _off_diagonal(target), dim=-1).mean()

    def _means(self, features: Tensor) -> Tensor:
        return reduce(features.float(), "(f n) c -> f c", "mean", f=self.grid.frames)


def _off_diagonal(pairs: Tensor) -> Tensor:
    """All pairs of different frames in order, [n, n, c] -> [n - 1, n, c]."""
    n = len(pairs)
    return pairs.flatten(0, 1)[1:].view(n - 1, n + 1, -1)[:, :-1]  # every (n + 1)th pair is on the diagonal


LOSSES: dict[str, Any] = {"flow": FlowLoss, "moft": MoftLoss, "smm": SmmLoss, "smm-release": SmmLoss}
