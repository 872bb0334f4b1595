"""Finds the folder of a model: a shipped one, one in the hub's cache or on the hub, or a local folder."""

from __future__ import annotations

import logging
from pathlib import Path

from ditflow.errors import DitflowError, first_line
from ditflow.models.families import family_of, known_model, local_folder, models
from ditflow.models.hub import INDEX, cached_folder, is_hub_id, missing_files, wanted_files

logger = logging.getLogger(__name__)


def find_folder(model: str, download: bool = True) -> Path:
    """The pipeline folder of a shipped model, a hub id or a local folder.

    With `download`, downloads the files that the hub's cache lacks. Raises DitflowError if there is no such
    model.
    """
    if folder := local_folder(model):
        if not (folder / INDEX).is_file():
            raise DitflowError(f"{model} is a folder without {INDEX}: give a diffusers pipeline folder")
        return folder
    if not known_model(model) and not is_hub_id(model):
        raise DitflowError(
            f"model {model!r}: no such folder or hub id; accepted: {', '.join(models())} (configs/models/), "
            "OWNER/NAME, a folder"
        )
    return _from_hub(model, download)


def _from_hub(model: str, download: bool) -> Path:
    from huggingface_hub import is_offline_mode, snapshot_download

    known = known_model(model)
    weights = known["weights"] if known else {"id": model}
    family = family_of(model, download)
    folder = cached_folder(weights["id"], family.parts) if family else None
    if folder and not missing_files(folder, family.parts):
        return folder
    if not download:
        raise DitflowError(
            f"model {model!r}: not in configs/models/ ({', '.join(models())}), not a folder and not in the "
            "hub's cache, so its shape is unknown; give one of these models or a folder"
        )
    what = weights["id"]
    if known:
        what += f" ({weights['download']}, {weights['licence']})"
    if is_offline_mode():
        raise DitflowError(
            f"the weights of {what} are not on this machine, and downloads are off here; get them with "
            f"`hf download {weights['id']}`, or give --model FOLDER"
        )
    logger.warning("downloading %s", what)
    try:
        if family is None:
            raise OSError(f"its {INDEX} cannot be fetched")
        folder = Path(snapshot_download(weights["id"], allow_patterns=wanted_files(family.parts)))
        missing = missing_files(folder, family.parts)
        if missing:  # offline, snapshot_download returns an incomplete cache
            raise OSError(f"{missing[0]} is missing")
        return folder
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DitflowError(
            f"the weights of {what} are not on this machine, and the download failed ({reason}): download "
            "them on a machine with a network and give --model FOLDER; --model small needs no download"
        ) from None
