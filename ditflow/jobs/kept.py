"""What a run folder keeps for its own run, by the run's settings and model."""

from __future__ import annotations

from ditflow import video
from ditflow.models.loading import ModelFolder
from ditflow.motion.chosen import ChosenMotion
from ditflow.run_folder.checkpoint import StateFolder, checksum
from ditflow.run_folder.chosen import load_chosen
from ditflow.run_folder.digests import clip_digest
from ditflow.run_folder.fingerprint import fingerprint
from ditflow.run_folder.run import Run
from ditflow.run_folder.schema import Shapes
from ditflow.settings import Settings


def checkpoint_of(
    run: Run, settings: Settings, folder: ModelFolder, clip: video.Clip, chosen: ChosenMotion | None
) -> StateFolder:
    motion = checksum(chosen.tensors, {}) if chosen else ""
    return StateFolder(run, fingerprint(settings, folder, clip_digest(clip), motion))


def chosen_of(run: Run, settings: Settings, folder: ModelFolder) -> ChosenMotion | None:
    """The chosen motion of a run that is guided by one."""
    if not settings.chooses_motion or not settings.optimises:
        return None
    return load_chosen(run, settings, folder.grid(settings.frames, settings.size))


def shapes_of(settings: Settings, folder: ModelFolder) -> Shapes:
    size = settings.size
    return Shapes(
        (settings.frames, size.height, size.width, 3),
        (1, *folder.family.prompt_shape(folder.config("transformer"))),
        folder.latent_shape(settings.frames, size),
    )
