"""The run folder: what is written, when, and how it is read again."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ditflow.errors import DitflowError
from ditflow.files import inside, refuse_pickle, whole_or_absent
from ditflow.settings import Settings, read_settings

LATENTS = "latents.safetensors"
LONGEST_NAME = 60  # characters of a folder's: up to 240 bytes, of the 255 that file systems have


@dataclass(frozen=True)
class Run:
    """A run folder that exists. Every file appears whole: it is written under another name and renamed."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A transfer's, finished or not. Raises DitflowError for a folder that is none."""
        if not inside(folder, "settings.yaml").is_file():
            raise DitflowError(f"{folder} is no run folder: it has no settings.yaml; give a transfer's")
        return cls(folder)

    @property
    def finished(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / "run.json").is_file()

    @property
    def quoted(self) -> str:
        """The folder as a word of a command."""
        return shlex.quote(str(self.folder))

    def settings(self) -> Settings:
        return read_settings(inside(self.folder, "settings.yaml"))

    def write_text(self, name: str, text: str) -> None:
        self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_tensors(
        self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
    ) -> None:
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        self._write(name, lambda path: path.write_bytes(save(whole, metadata)))

    def write_picture(self, name: str, pixels: np.ndarray) -> None:
        """`pixels` [height, width, 3] uint8, as PNG."""
        self._write(name, lambda path: Image.fromarray(pixels).save(path, format="PNG"))

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        try:
            with whole_or_absent(inside(self.folder, name)) as unfinished:
                write(unfinished)
        except OSError as error:
            raise DitflowError(
                f"{self.folder / name} cannot be written ({error.strerror or error}): make room or give "
                "another place"
            ) from error


def read_tensors(path: Path, missing: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata. Raises DitflowError where it is absent or damaged."""
    if not path.is_file():
        raise DitflowError(f"{path.parent} has no {path.name}: {missing}")
    try:
        refuse_pickle(path)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DitflowError(f"{path} is damaged ({error}): make the run again") from None


def read_latents(folder: Path) -> tuple[Tensor, Tensor]:
    """A run's reference's and its result's, [1, frames, channels, height, width].

    Raises DitflowError where the file is absent, damaged or no transfer's.
    """
    path = inside(folder, LATENTS)
    tensors, _ = read_tensors(path, "every transfer writes it")
    reference, result = tensors.get("reference"), tensors.get("latents")
    if reference is None or result is None or reference.ndim != 5 or reference.shape != result.shape:
        raise DitflowError(f"{path} is damaged: it has no `reference` and `latents` of one shape")
    return reference, result


def create_run(settings: Settings, kind: str = "") -> Run:
    """A new folder: `output`, or a name after the clip and the prompt; a taken name gets a number."""
    wanted = Path(settings.output) if settings.output else Path("runs") / _name(settings, kind)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return Run(folder)
        except FileExistsError:
            continue
        except OSError as error:
            raise DitflowError(
                f"cannot make the run folder {folder}: {error.strerror}; try --output"
            ) from None


def _name(settings: Settings, kind: str) -> str:
    words = [kind] if kind else re.findall(r"\w+", settings.prompt.lower())[:6]
    return "-".join([Path(settings.video).stem, *words])[:LONGEST_NAME]


def versions() -> dict[str, str]:
    """What computed a run, by package."""
    found = {"python": platform.python_version()}
    for package in ("ditflow", "torch", "triton", "diffusers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
