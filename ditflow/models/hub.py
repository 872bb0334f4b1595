"""Finds a model's files in the hub's cache, and turns downloads off. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ditflow.errors import DitflowError, first_line
from ditflow.files import PICKLE_SUFFIXES, regular_file

WITHOUT_WEIGHTS = ("tokenizer", "scheduler")
INDEX = "model_index.json"  # names the pipeline class and its parts
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # dots are common, as in CogVideoX1.5-5B
FILE_SUFFIXES = (".safetensors", ".gguf", *PICKLE_SUFFIXES)
LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # of diffusers and of peft


def is_hub_id(name: str) -> bool:
    """Whether a name can be OWNER/NAME on the hub, and is not that of a weights file."""
    return bool(HUB_ID.fullmatch(name)) and not name.lower().endswith(FILE_SUFFIXES)


@contextmanager
def offline() -> Iterator[None]:
    """Use only what is on this machine: no library requests anything from the hub meanwhile."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def wanted_files(parts: Sequence[str]) -> list[str]:
    """Patterns of the files to download for a pipeline with these parts."""
    suffixes = (".json", ".safetensors", ".model")
    return [INDEX, *(f"{part}/*{suffix}" for part in parts for suffix in suffixes)]


def cached_folder(identity: str, parts: Sequence[str]) -> Path | None:
    """The pipeline folder of a hub id in the cache, complete or not; None if nothing of it is cached."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(identity, allow_patterns=wanted_files(parts), local_files_only=True))
    except (OSError, ValueError):
        return None


def missing_files(folder: Path, parts: Sequence[str]) -> list[str]:
    """Files that a pipeline folder lacks, relative to it, for instance after an interrupted download."""
    missing = [] if (folder / INDEX).is_file() else [INDEX]
    missing += [f"{part}/" for part in parts if not (folder / part).is_dir()]
    for part in parts:
        if part not in WITHOUT_WEIGHTS and (folder / part).is_dir():
            missing += [f"{part}/{name}" for name in _missing_weights(folder / part)]
    return missing


def lora_name(names: Sequence[str]) -> str | None:
    """The LoRA's file among a folder's names: a usual one, or else the only .safetensors file."""
    usual = [name for name in LORA_NAMES if name in names]
    found = usual or [name for name in names if name.endswith(".safetensors")]
    return found[0] if usual or len(found) == 1 else None


def hub_lora(identity: str) -> Path:
    """The file of a LoRA on the hub, from the cache if it has it. Raises DitflowError with the cause."""
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

    try:
        cached = Path(snapshot_download(identity, local_files_only=True))
        if name := lora_name([path.name for path in cached.iterdir()]):
            return cached / name
    except (OSError, ValueError):
        pass  # nothing of it is in the cache
    try:
        names = [file.rfilename for file in HfApi().model_info(identity).siblings or ()]
        if name := lora_name(names):
            if "adapter_config.json" in names:
                hf_hub_download(identity, "adapter_config.json")
            return Path(hf_hub_download(identity, name))
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise DitflowError(
            f"--lora {identity}: no such file, folder or repository on the hub, or a private repository"
        ) from None
    except (OSError, ValueError, errors.HTTPError) as error:
        reason = first_line(error)
        raise DitflowError(
            f"--lora {identity}: not a file or folder, not in the hub's cache, and the hub cannot be reached "
            f"({reason}): download it on a machine with a network and give the file"
        ) from None
    raise DitflowError(
        f"--lora {identity}: the repository has no {' or '.join(LORA_NAMES)}, and no or several other "
        ".safetensors files: download the right file and give its path"
    )


def _missing_weights(part: Path) -> list[str]:
    """Weights files missing from a part. If the weights are split, an index names the files."""
    index = next(part.glob("*.safetensors.index.json"), None)
    if index is None:
        whole = [path for path in part.glob("*.safetensors") if "-of-" not in path.name]
        return [] if whole else ["*.safetensors"]
    try:
        named = set(json.loads(regular_file(index).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [index.name]
    return sorted(name for name in named if not (part / name).is_file())
