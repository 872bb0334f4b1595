"""What a caller of this process gives a job, besides its settings."""

from __future__ import annotations

from dataclasses import dataclass

from ditflow import video
from ditflow.models.kept import KeptParts


@dataclass(frozen=True)
class Given:
    """What a caller has in memory already, and what it wants of the run folder."""

    clip: video.Clip | None = None  # instead of reading `Settings.video`
    kept: KeptParts | None = None  # of earlier runs
    exact_folder: bool = False  # whether the run folder's name may get no number


NOTHING = Given()
