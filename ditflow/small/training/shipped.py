"""Make training checkpoints from the shipped models."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from ditflow.files import whole_or_absent
from ditflow.models.families import shipped_folder
from ditflow.small import SMALL_MODELS
from ditflow.small.training.export import RECORD

WEIGHTS = "diffusion_pytorch_model.safetensors"


def adopt_shipped(checkpoints: Path) -> None:
    """Write a checkpoint from the shipped models for each stage that has none.

    They hold weights and progress; the optimisers start afresh. If a stage started from another one, both get
    the later weights, as only those are shipped.
    """
    stages = json.loads((shipped_folder("small").parent / RECORD).read_text(encoding="utf-8"))
    folders = {style: shipped_folder(name) for name, style in SMALL_MODELS.items()}
    # started from these, as the decoder did from the vae
    folders |= {"tracking": folders["rope"], "wan-tracking": folders["wan"]}
    vae = load_file(folders["rope"] / "vae" / WEIGHTS)
    decoder = "decoder."
    networks = {
        "vae": vae,
        "decoder": {name.removeprefix(decoder): it for name, it in vae.items() if name.startswith(decoder)},
        "wan-vae": load_file(folders["wan"] / "vae" / WEIGHTS),
    }
    networks |= {style: load_file(folder / "transformer" / WEIGHTS) for style, folder in folders.items()}
    for stage, weights in networks.items():
        path = checkpoints / f"{stage}.safetensors"
        if path.exists():
            continue
        tensors = {
            f"{kind}.{name}": tensor.float()
            for kind in ("network", "average")
            for name, tensor in weights.items()
        }
        facts = {name: str(stages[stage][name]) for name in ("step", "seconds", "loss")}
        with whole_or_absent(path) as unfinished:
            save_file(tensors, unfinished, facts)
