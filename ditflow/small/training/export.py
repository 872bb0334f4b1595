"""Write trained checkpoints as pipeline folders, which load like any other model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch

from ditflow.small.pipeline import random_text_encoder, write_pipeline
from ditflow.small.training.autoencoder import trained_autoencoder
from ditflow.small.training.latents import WAN, material
from ditflow.small.training.loop import averaged, progress_of
from ditflow.small.training.tracking import STYLE as TRACKING_STYLE
from ditflow.small.training.transformer import trained_transformer
from ditflow.small.training.wan_autoencoder import trained_wan_autoencoder
from ditflow.small.training.wan_tracking import NAME as WAN_TRACKING
from ditflow.small.training.wan_transformer import trained_wan_transformer
from ditflow.small.wan_pipeline import random_umt5, write_wan_pipeline

RECORD = "training.json"  # beside the exported models
CPU = torch.device("cpu")


def export(style: str, checkpoints: Path, folder: Path) -> None:
    """Write a model at its present state of training, in float16; `folder` must be absent or empty.

    Raises DitflowError if its transformer has no checkpoint or the folder is in the way.
    """
    if style == "wan":
        _export_wan(checkpoints, folder)
        return
    transformer = trained_transformer(style, checkpoints)
    if style == TRACKING_STYLE and (later := checkpoints / "tracking.safetensors").is_file():
        transformer.load_state_dict(averaged(later))
    vae = trained_autoencoder(checkpoints)
    scale = material(checkpoints, CPU).scale
    vae.register_to_config(scaling_factor=round(float(scale), 4))
    write_pipeline(folder, random_text_encoder(), transformer, vae)


def _export_wan(checkpoints: Path, folder: Path) -> None:
    transformer, vae = trained_wan_transformer(checkpoints), trained_wan_autoencoder(checkpoints)
    if (later := checkpoints / WAN_TRACKING).is_file():
        transformer.load_state_dict(averaged(later))
    found = material(checkpoints, CPU, WAN)
    mean, std = ([round(value, 4) for value in x.tolist()] for x in (found.mean, 1 / found.scale))
    vae.register_to_config(latents_mean=mean, latents_std=std)
    write_wan_pipeline(folder, random_umt5(), transformer, vae)


def write_record(checkpoints: Path, stages: Iterable[str], folder: Path) -> None:
    """Write the progress of every stage beside the exported models: when, steps, seconds, loss.

    What an earlier record says of stages without a checkpoint stays.
    """
    path = folder / RECORD
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made = {
        stage: {"date": str(date.today())} | progress_of(checkpoint)
        for stage in stages
        if (checkpoint := checkpoints / f"{stage}.safetensors").is_file()
    }
    path.write_text(json.dumps(before | made, indent=2) + "\n", encoding="utf-8")
