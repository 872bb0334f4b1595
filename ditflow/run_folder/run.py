"""Creates a run folder, and names, writes and reads its files."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ditflow.errors import DitflowError, SettingsError, TemporaryError
from ditflow.files import inside, json_text, refuse_pickle, regular_file, whole_or_absent
from ditflow.limits import CLIP_BYTES, SETTINGS_BYTES, TENSOR_BYTES
from ditflow.run_folder.kind import RECORD, SETTINGS, check_run_folder
from ditflow.run_folder.record import read_record
from ditflow.settings import Settings, read_settings
from ditflow.video import Clip, read_clip

LATENTS = "latents.safetensors"
STATE = "state"  # the folder of an unfinished run's checkpoint
SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": ""}  # by `Settings.format`
LONGEST_SETTINGS = SETTINGS_BYTES - 1024  # bytes; values that replace `auto` may be longer
LONGEST_NAME = 60  # characters of a folder's name; at most 240 bytes, and file systems allow 255


@dataclass(frozen=True)
class Run:
    """An existing run folder. Files are written under a temporary name and renamed, so they are complete.

    Nothing is written once the folder has been moved, deleted or replaced by another.
    """

    folder: Path
    _status: os.stat_result | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        with suppress(OSError):
            object.__setattr__(self, "_status", self.folder.stat())

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open a transfer's folder, finished or not. Raises DitflowError for any other folder."""
        folder = Path(folder)
        check_run_folder(folder)
        return cls(folder)

    @property
    def finished(self) -> bool:
        """Whether the run finished successfully: it has a readable record.

        Raises DitflowError if its record is damaged and there is no checkpoint to make it again from.
        """
        try:
            return bool((self.folder / RECORD).is_file() and self.record())
        except DitflowError:
            if (self.folder / STATE).is_dir():
                return False
            raise

    @property
    def quoted(self) -> str:
        """The folder, quoted for a shell."""
        return shlex.quote(str(self.folder))

    def record(self) -> dict[str, Any]:
        """The content of run.json. Raises DitflowError if it is missing or damaged."""
        return read_record(inside(self.folder, RECORD))

    def settings(self) -> Settings:
        return read_settings(inside(self.folder, SETTINGS))

    def clip(self, name: str, settings: Settings) -> Clip:
        """The run's "result" or "reference" video."""
        return read_clip(inside(self.folder, video_name(name, settings)), frames=settings.frames, size=None)

    def write_text(self, name: str, text: str) -> None:
        self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write_text(name, json_text(content) + "\n")

    def write_tensors(
        self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
    ) -> None:
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        self._write(name, lambda path: path.write_bytes(save(whole, metadata)))

    def write_picture(self, name: str, pixels: np.ndarray) -> None:
        """Write `pixels`, uint8 [height, width, 3], as PNG."""
        self._write(name, lambda path: Image.fromarray(pixels).save(path, format="PNG"))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield the path at which to write a file or folder.

        Raises DitflowError if the run folder has been moved, deleted or replaced, before or meanwhile.
        """
        self._check_in_place()
        try:
            yield inside(self.folder, name)
        except DitflowError:
            self._check_in_place()
            raise

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        with self.writing(name) as path:
            try:
                with whole_or_absent(path) as unfinished:
                    write(unfinished)
            except OSError as error:
                raise TemporaryError(
                    f"{path} cannot be written ({error.strerror or error}): free some space or give another "
                    "--output"
                ) from error

    def _check_in_place(self) -> None:
        with suppress(OSError):
            if self._status is None or os.path.samestat(self._status, self.folder.stat()):
                return
        raise DitflowError(
            f"{self.folder} was moved, deleted or replaced while the run was using it, so the run ends here; "
            "if it was moved, continue it from its new place with `ditflow resume`"
        )


def video_name(name: str, settings: Settings) -> str:
    """The file or folder name of a run's "result", "reference" or "comparison"."""
    return f"{name}{SUFFIXES[settings.format]}"


def read_tensors(
    path: Path, missing: str, most: int = TENSOR_BYTES
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file.

    Raises DitflowError if it is damaged, missing or larger than `most` bytes; `missing` says when such a file
    is written.
    """
    if not path.exists():
        raise DitflowError(f"{path.parent} has no {path.name}: {missing}")
    try:
        if (size := regular_file(path).stat().st_size) > most:
            raise DitflowError(f"{path} has {size} bytes, at most {most} accepted: give another file")
        refuse_pickle(path)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DitflowError(f"{path} is damaged ({error}): start a new run") from None


def read_latents(folder: Path, has_clip: bool = True) -> tuple[Tensor | None, Tensor]:
    """The latents of a run's reference, if it has a clip, and of its result.

    Both are [1, frames, channels, height, width].

    Raises DitflowError if the file is missing, damaged or not from a transfer.
    """
    path = inside(folder, LATENTS)
    tensors, _ = read_tensors(path, "every transfer writes it", CLIP_BYTES)
    reference, result = tensors.get("reference"), tensors.get("latents")
    wanted = (reference, result) if has_clip else (result,)
    if any(each is None or each.ndim != 5 or each.shape != result.shape for each in wanted):
        raise DitflowError(f"{path} is damaged: `reference` and `latents` are missing or differ in shape")
    for name, latents in tensors.items():
        if not latents.is_floating_point() or not latents.isfinite().all():
            raise DitflowError(f"{path} is damaged: `{name}` holds NaN, infinity or no real numbers")
    return reference, result


def check_latents_shape(folder: Path, latents: Tensor, expected: tuple[int, ...]) -> None:
    """Raises DitflowError if a run's latents are not those of its settings and model."""
    if tuple(latents.shape) != expected:
        raise DitflowError(
            f"{folder / LATENTS} is damaged: its latents are {list(latents.shape)}, expected "
            f"{list(expected)} by the run's settings and model"
        )


def check_output_name(output: str) -> None:
    """Raises SettingsError if `output` cannot name a new folder; an existing folder gets a number instead."""
    wanted = Path(output)
    if output and wanted.name in ("", ".."):
        raise SettingsError(f"output: {output!r} given; give the name of a new folder, such as runs/one")
    if os.path.lexists(wanted) and not os.path.isdir(wanted):
        raise SettingsError(f"output: {output!r} exists and is not a folder; give the name of a new folder")


def settings_text(settings: Settings) -> str:
    """The content of settings.yaml. Raises SettingsError if it is too long to be read back."""
    text = settings.to_yaml()
    if (size := len(text.encode())) > LONGEST_SETTINGS:
        raise SettingsError(
            f"the settings take {size} bytes, at most {LONGEST_SETTINGS} accepted; shorten the longest one"
        )
    return text


def create_run(settings: Settings, kind: str = "", exact: bool = False) -> Run:
    """Create the folder `output`, or one named after the clip and the prompt. A taken name gets a number.

    Raises DitflowError if the folder cannot be made or, if it must be exactly that one, if the name is taken.
    """
    wanted = Path(settings.output) if settings.output else Path("runs") / run_name(settings, kind)
    folder = wanted
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in count(2):
            with suppress(FileExistsError):
                folder.mkdir()
                return Run(folder)
            if exact:
                raise DitflowError(f"{folder} exists: another run has just begun there; wait for it")
            folder = wanted.with_name(f"{wanted.name}-{number}")
    except OSError as error:
        links = [each for each in wanted.parents if each.is_symlink() and not each.exists()]
        reason = f"{links[0]} is a link to nothing" if links else error.strerror
        raise DitflowError(f"cannot make the run folder {folder}: {reason}; give another --output") from None


def run_name(settings: Settings, kind: str = "") -> str:
    """A folder's name from the clip and the prompt, or the clip and the kind of run."""
    words = [kind] if kind else re.findall(r"\w+", settings.prompt.lower())[:6]
    return "-".join([settings.source_name, *words])[:LONGEST_NAME]


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, of the main packages and of `more` packages, where they are installed."""
    found = {"python": platform.python_version()}
    for package in ("ditflow", "torch", "triton", "diffusers", "transformers", *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
