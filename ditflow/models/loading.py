"""Weights from a name to modules: the hub's cache, a download or a local folder; safetensors only."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from transformers import T5EncoderModel, T5Tokenizer

from ditflow.errors import DitflowError
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.gguf_file import load_gguf
from ditflow.models.hub import PARTS, WANTED, cached_folder, missing_files
from ditflow.models.lora import add_lora
from ditflow.models.storage import store_weights
from ditflow.models.trust import CONFIGS, check_part, read_json
from ditflow.settings.settings import MODELS, shipped
from ditflow.small import SMALL_MODELS, pipeline_folder

logger = logging.getLogger(__name__)

ATTENTION = "sdpa"  # T5's: its config could name one to be fetched and run


class ModelFolder:
    """A CogVideoX pipeline folder; each part is loaded when a phase needs it, and belongs to that phase.

    The transformer and the text encoder come on the host, and whoever uses them places them. Where `dtype` is
    the files' own they are memory-mapped: a block is read when it is first moved or computed with.

    Raises DitflowError where the model cannot be found, downloaded or read.
    """

    def __init__(self, model: str, dtype: str, device: torch.device):
        self.name, self.device, self.dtype = model, device, getattr(torch, dtype)
        self.path = find_folder(model)

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part, without its weights."""
        try:
            return read_json(self.path / part / CONFIGS.get(part, "config.json"))
        except (OSError, ValueError) as error:
            raise self._damaged(part, error) from None

    def check(self) -> None:
        """Raises DitflowError for what is missing or not to be trusted, as far as can be told at once."""
        for part in PARTS:
            self._check(part)

    def tokenizer(self) -> T5Tokenizer:
        return self._load("tokenizer", T5Tokenizer)

    def text_encoder(self) -> T5EncoderModel:
        """The T5 encoder, on the host."""
        return self._load("text_encoder", T5EncoderModel, dtype=self.dtype, attn_implementation=ATTENTION)

    def vae(self) -> AutoencoderKLCogVideoX:
        """The autoencoder, on the device."""
        vae = self._load("vae", AutoencoderKLCogVideoX, torch_dtype=self.dtype).to(self.device)
        return vae.requires_grad_(False).eval()

    def backbone(
        self,
        loras: tuple[str, ...] = (),
        weights: str = "full",
        attention: str = "sdpa",
        compiled: bool = False,
    ) -> CogVideoX:
        """The transformer, on the host."""
        if weights.endswith(".gguf"):
            transformer = load_gguf(Path(weights), self.config("transformer"), self.dtype)
        else:
            transformer = self._load("transformer", CogVideoXTransformer3DModel, torch_dtype=self.dtype)
            for lora in loras:
                add_lora(transformer, lora)
            store_weights(transformer, weights, self.device)
        return CogVideoX(transformer, attention, compiled)

    def _check(self, part: str) -> None:
        try:
            check_part(self.path / part)
        except (OSError, ValueError) as error:
            raise self._damaged(part, error) from None

    def _load(self, part: str, kind: type, **options: Any) -> Any:
        self._check(part)
        if part != "tokenizer":
            options["use_safetensors"] = True
        try:
            return kind.from_pretrained(self.path / part, local_files_only=True, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # shapes and names are the files': the libraries raise many kinds
            raise self._damaged(part, error) from None

    def _damaged(self, part: str, error: Exception) -> DitflowError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return DitflowError(f"{self.name}: {part}/ cannot be loaded from {self.path}: {reason}")


def find_folder(model: str, download: bool = True) -> Path:
    """The pipeline folder of a shipped model, a hub id or a local folder.

    Downloads what the hub's cache lacks, if it may. Raises DitflowError where there is no such model.
    """
    if model in SMALL_MODELS:
        return pipeline_folder(model)
    if (path := Path(os.path.expanduser(model))).is_dir():
        if not (path / "model_index.json").is_file():
            raise DitflowError(
                f"{model} is a folder without model_index.json: give a CogVideoX pipeline folder"
            )
        return path
    if model not in MODELS and (path.suffix or model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise DitflowError(
            f"model {model!r}: no such folder or hub id; accepted: {', '.join(MODELS)} (configs/models/), "
            "OWNER/NAME, a folder"
        )
    return _from_hub(model, download)


def _from_hub(model: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    known = shipped(f"models/{model}.yaml")["weights"] if model in MODELS else {"id": model}
    if (folder := cached_folder(known["id"])) and not missing_files(folder):
        return folder
    if not download:
        raise DitflowError(
            f"model {model!r}: nothing is known of its shape; looked in configs/models/ "
            f"({', '.join(MODELS)}), for a folder of that name, and in the hub's cache"
        )
    what = known["id"]
    if model in MODELS:
        what += f" ({known['download']}, {known['licence']})"
    logger.warning("downloading %s", what)
    try:
        folder = Path(snapshot_download(known["id"], allow_patterns=WANTED))
        if missing := missing_files(folder):  # without a network, what there is counts as downloaded
            raise OSError(f"{missing[0]} is missing")
        return folder
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DitflowError(
            f"no weights of {what} on this machine, and the download failed ({reason}): download it where "
            "there is a network, then --model FOLDER; --model small needs no download"
        ) from None
