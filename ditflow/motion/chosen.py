"""What a run asks for besides, or instead of, the motion that a block sees in its clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditflow.models.protocols import Grid
from ditflow.motion.edits import combined, flipped, reversed_in_time, scaled, shifted
from ditflow.settings import Settings

TENSORS = ("counted", "camera", "elsewhere", "drawn")


@dataclass(frozen=True)
class ChosenMotion:
    """Makes the target of guidance by a run's settings. Flows and targets are as in `ditflow.motion`."""

    settings: Settings
    grid: Grid
    counted: Tensor | None = None  # [frames, height * width] bool, where the clip's motion counts; None: all
    camera: Tensor | None = None  # of the clip, for the whole frame, instead of what a block sees
    elsewhere: Tensor | None = None  # the camera's motion in another clip, where this one's does not count
    drawn: Tensor | None = None

    def target(
        self,
        seen: Tensor | None = None,  # the clip's flow in a block; None if there is no clip
    ) -> Tensor:  # [frames (query), frames (key), height * width, 2], NaN where nothing is asked
        """Where the new video's content is to go.

        The clip's motion is masked, then changed; the drawn motion lies over it, and is never changed.
        """
        if not self.settings.has_clip:
            return self.drawn
        found = self._of_clip(seen)
        if self.drawn is None:
            return found
        here = ~self.drawn.isnan().all(dim=1).any(dim=-1)  # cells with an instruction
        return combined(self.drawn, here, found)

    def _of_clip(self, seen: Tensor) -> Tensor:
        if self.camera is not None:
            found = self.camera
        elif self.settings.rows == "moving":
            found = seen.where((seen != 0).any(dim=-1, keepdim=True), torch.nan)
        else:
            found = seen
        if self.counted is None:
            return self._changed(found)
        found = self._changed(combined(found, self.counted))
        if self.elsewhere is None:
            return found
        asked = self._moved(combined(torch.zeros_like(found), self.counted))
        return found.where(~asked.isnan(), self.elsewhere)

    def _changed(self, target: Tensor) -> Tensor:
        return scaled(self._moved(target), self.grid, self.settings.motion_scale)

    def _moved(self, target: Tensor) -> Tensor:
        settings, grid = self.settings, self.grid
        if settings.flip != "none":
            target = flipped(target, grid, settings.flip)
        if settings.reverse_motion:
            target = reversed_in_time(target)
        if any(settings.motion_shift):
            target = shifted(target, grid, *settings.motion_shift)
        return target

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the settings alone do not tell, by name."""
        return {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}
