"""From checkpoints to a pipeline folder that the program loads as it loads the real models."""

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
    """Write the model as far as it is trained to `folder` (absent or empty), in float16.

    Raises DitflowError where the transformer of this style has no checkpoint, or something is in the way.
    """
    transformer = trained_transformer(style, checkpoints)
    if style == TRACKING_STYLE and (later := checkpoints / "tracking.safetensors").is_file():
        transformer.load_state_dict(averaged(later))
    vae = trained_autoencoder(checkpoints)
    scale = material(checkpoints, torch.device("cpu")).scale
    vae.register_to_config(scaling_factor=round(float(scale), 4))
    write_pipeline(folder, random_text_encoder(), transformer, vae)


def write_record(checkpoints: Path, stages: Iterable[str], folder: Path) -> None:
    """Write how far every stage is, beside the exported models: steps, seconds, loss."""
    made = {
        stage: progress_of(checkpoint)
        for stage in stages
        if (checkpoint := checkpoints / f"{stage}.safetensors").is_file()
    }
    record = {"date": str(date.today()), "stages": made}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
