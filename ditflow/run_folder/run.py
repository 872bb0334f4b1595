"""Creates a run folder, and names, writes and reads its files."""

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
from ditflow.video import Clip, read_clip

LATENTS = "latents.safetensors"
SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": ""}  # by `Settings.format`
LONGEST_NAME = 60  # characters of a folder's name; at most 240 bytes, and file systems allow 255


@dataclass(frozen=True)
class Run:
    """An existing run folder. Files are written under a temporary name and renamed, so they are complete."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a transfer's folder, finished or not. Raises DitflowError for any other folder."""
        if not inside(folder, "settings.yaml").is_file():
            raise DitflowError(
                f"{folder} is not a run folder: it has no settings.yaml; give a transfer's folder"
            )
        return cls(folder)

    @property
    def finished(self) -> bool:
        """Whether the run finished successfully."""
        return (self.folder / "run.json").is_file()

    @property
    def quoted(self) -> str:
        """The folder, quoted for a shell."""
        return shlex.quote(str(self.folder))

    def settings(self) -> Settings:
        return read_settings(inside(self.folder, "settings.yaml"))

    def clip(self, name: str, settings: Settings) -> Clip:
        """The run's "result" or "reference" video."""
        return read_clip(inside(self.folder, video_name(name, settings)), frames=settings.frames, size=None)

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
        """Write `pixels`, uint8 [height, width, 3], as PNG."""
        self._write(name, lambda path: Image.fromarray(pixels).save(path, format="PNG"))

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        try:
            with whole_or_absent(inside(self.folder, name)) as unfinished:
                write(unfinished)
        except OSError as error:
            raise DitflowError(
                f"{self.folder / name} cannot be written ({error.strerror or error}): free some space or "
                "give another --output"
            ) from error


def video_name(name: str, settings: Settings) -> str:
    """The file or folder name of a run's "result", "reference" or "comparison"."""
    return f"{name}{SUFFIXES[settings.format]}"


def read_tensors(path: Path, missing: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file.

    Raises DitflowError if it is damaged or missing; `missing` says when such a file is written.
    """
    if not path.is_file():
        raise DitflowError(f"{path.parent} has no {path.name}: {missing}")
    try:
        refuse_pickle(path)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DitflowError(f"{path} is damaged ({error}): start a new run") from None


def read_latents(folder: Path) -> tuple[Tensor, Tensor]:
    """The latents of a run's reference and result, [1, frames, channels, height, width].

    Raises DitflowError if the file is missing, damaged or not from a transfer.
    """
    path = inside(folder, LATENTS)
    tensors, _ = read_tensors(path, "every transfer writes it")
    reference, result = tensors.get("reference"), tensors.get("latents")
    if reference is None or result is None or reference.ndim != 5 or reference.shape != result.shape:
        raise DitflowError(f"{path} is damaged: `reference` and `latents` are missing or differ in shape")
    return reference, result


def create_run(settings: Settings, kind: str = "") -> Run:
    """Create the folder `output`, or one named after the clip and the prompt. A taken name gets a number."""
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
                f"cannot make the run folder {folder}: {error.strerror}; give another --output"
            ) from None


def _name(settings: Settings, kind: str) -> str:
    words = [kind] if kind else re.findall(r"\w+", settings.prompt.lower())[:6]
    return "-".join([Path(settings.video).stem, *words])[:LONGEST_NAME]


def versions() -> dict[str, str]:
    """Versions of Python and of the main packages."""
    found = {"python": platform.python_version()}
    for package in ("ditflow", "torch", "triton", "diffusers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
