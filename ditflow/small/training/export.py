"""Write trained checkpoints as pipeline folders, which load like any other model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch

from ditflow.small.pipeline import random_text_encoder, write_pipeline
from ditflow.small.training.autoencoder import trained_autoencoder
from ditflow.small.training.latents import material
from ditflow.small.training.loop import averaged, progress_of
from ditflow.small.training.tracking import STYLE as TRACKING_STYLE
from ditflow.small.training.transformer import trained_transformer

RECORD = "training.json"  # beside the exported models


def export(style: str, checkpoints: Path, folder: Path) -> None:
    """Write a model at its present state of training, in float16; `folder` must be absent or empty.

    Raises DitflowError if the transformer of this style has no checkpoint or the folder is in the way.
    """
    transformer = trained_transformer(style, checkpoints)
    if style == TRACKING_STYLE and (later := checkpoints / "tracking.safetensors").is_file():
        transformer.load_state_dict(averaged(later))
    vae = trained_autoencoder(checkpoints)
    scale = material(checkpoints, torch.device("cpu")).scale
    vae.register_to_config(scaling_factor=round(float(scale), 4))
    write_pipeline(folder, random_text_encoder(), transformer, vae)


def write_record(checkpoints: Path, stages: Iterable[str], folder: Path) -> None:
    """Write the progress of every stage beside the exported models: steps, seconds, loss."""
    made = {
        stage: progress_of(checkpoint)
        for stage in stages
        if (checkpoint := checkpoints / f"{stage}.safetensors").is_file()
    }
    record = {"date": str(date.today()), "stages": made}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
