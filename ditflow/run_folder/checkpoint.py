"""The checkpoint of an unfinished run, in the folder `state/` of its run folder.

| file | written | content |
| --- | --- | --- |
| `clip` | first | the clip's frames as they were read, so that the video is not needed again |
| `texts`, `reference` | after encoding | the encoded prompts and clip |
| `embedding_000`, ... | after a guided step | the embedding that the step ended with, if it is optimised |
| `step` | after every denoising step | what the next step needs; replaces the previous step's file |

Each is a safetensors file with the run's fingerprint and a checksum over its content.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditflow.errors import DitflowError, TemporaryError
from ditflow.files import clear_unfinished, inside
from ditflow.models.protocols import SchedulerState
from ditflow.run_folder.fingerprint import check_fingerprint
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import STATE, Run, read_tensors
from ditflow.video import Clip


@dataclass(frozen=True)
class State:
    """What the next denoising step needs, and the results collected so far."""

    index: int  # of the last finished step; -1 before the first
    latents: Tensor  # [1, frames, channels, height, width]
    embedding: Tensor | None  # the optimised one, if the next guided step starts from it
    schedule: SchedulerState
    losses: list[list[float]]  # [guided steps][optimisation steps]
    skipped: int  # optimisation steps skipped because float16 overflowed
    embeddings: list[Tensor]  # one for each guided step, if they are optimised


class StateFolder:
    """Reads and writes the checkpoint files of the run with this fingerprint, by name.

    Reading raises DitflowError if a file is damaged or belongs to another run, writing if the disk is full.
    """

    def __init__(self, run: Run, fingerprint: dict[str, str]):
        self.run, self.folder, self.fingerprint = run, run.folder / STATE, fingerprint
        self._files: Run | None = None  # the folder, which the first write makes
        if self.folder.is_symlink():
            raise DitflowError(f"{self.folder} is a link: replace it with the folder itself")
        if self.folder.is_dir():
            clear_unfinished(self.folder)

    def write(self, name: str, tensors: Mapping[str, Tensor], **facts: Any) -> None:
        # copied, because one tensor may have two names
        here = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        metadata = self.fingerprint | {key: json.dumps(value) for key, value in facts.items()}
        metadata["checksum"] = _checksum(here, metadata)
        with self.run.writing(STATE) as folder:
            if self._files is None:
                self._files = _made(folder)
            self._files.write_tensors(self.path(name).name, here, metadata)

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and facts as they were written."""
        path = inside(self.folder, self.path(name).name)
        tensors, metadata = read_tensors(path, "every unfinished transfer has one; start a new run")
        check_fingerprint(path, metadata, self.fingerprint)
        if metadata.pop("checksum", None) != _checksum(tensors, metadata):
            raise DitflowError(f"{path} is damaged (its checksum does not match): start a new run")
        facts = {key: json.loads(value) for key, value in metadata.items() if key not in self.fingerprint}
        return tensors, facts

    def check(self) -> None:
        """Raises DitflowError if a file is missing or cannot be resumed from."""
        for path in sorted(self.folder.glob("*.safetensors")):
            self.read(path.stem)
        read_state(self)

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def save_clip(files: StateFolder, clip: Clip) -> None:
    rate = clip.frame_rate.as_integer_ratio()
    files.write("clip", {"frames": torch.from_numpy(clip.frames)}, frame_rate=rate)


def load_clip(files: StateFolder) -> Clip:
    """The clip, bit for bit. Raises like `StateFolder`."""
    tensors, facts = files.read("clip")
    return Clip(tensors["frames"].numpy(), Fraction(*facts["frame_rate"]))


def read_state(files: StateFolder) -> State | None:
    """The last written state; None before the first step. Raises like `StateFolder`."""
    if not files.has("step"):
        return None
    tensors, facts = files.read("step")
    try:
        embeddings = [files.read(_embedding(index))[0] for index in range(facts.pop("embeddings"))]
        return State(
            **facts,
            latents=tensors.pop("latents"),
            embedding=tensors.pop("embedding", None),
            schedule=tensors,
            embeddings=[tensors["embedding"] for tensors in embeddings],
        )
    except (KeyError, TypeError) as error:
        raise DitflowError(f"{files.path('step')} is damaged ({error}): start a new run") from None


def clear_leftovers(run: Run) -> None:
    """Remove the checkpoint that a finished run still has if it was killed before removing it."""
    if (folder := run.folder / STATE).is_dir() and not folder.is_symlink():
        with locked(run.folder):
            clear_unfinished(run.folder)
            shutil.rmtree(folder)


class StateWriter:
    """Writes states in a thread while the run computes. Of the states that wait, only the newest is written.

    Leaving the context waits for the last write. `put` and leaving raise the error of an earlier write.
    """

    def __init__(self, files: StateFolder, written: int):
        self.files, self.written = files, written  # `written`: embeddings on disk
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self.states: list[Future] = []  # being written, waiting or failed

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, failure: type | None, *_: object) -> None:
        self.thread.shutdown()
        if failure is None:
            self._raise()

    def put(self, state: State) -> None:
        self.states = [future for future in self.states if not future.cancel()]  # a waiting one is outdated
        self._raise()
        self.states = [future for future in self.states if not future.done()]
        self.states.append(self.thread.submit(self._write, state))

    def _raise(self) -> None:
        for future in self.states:
            if future.done():
                future.result()

    @torch.no_grad()
    def _write(self, state: State) -> None:
        for index in range(self.written, len(state.embeddings)):
            self.files.write(_embedding(index), {"embedding": state.embeddings[index]})
        self.written = len(state.embeddings)
        tensors = {"latents": state.latents, **state.schedule}
        if state.embedding is not None:
            tensors["embedding"] = state.embedding
        self.files.write(
            "step",
            tensors,
            index=state.index,
            losses=state.losses,
            skipped=state.skipped,
            embeddings=len(state.embeddings),
        )


def _made(folder: Path) -> Run:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise TemporaryError(f"{folder} cannot be written ({error.strerror}): free some space") from error
    return Run(folder)


def _embedding(index: int) -> str:
    return f"embedding_{index:03}"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the tensors' names, types, shapes and bytes, and of the metadata."""
    about = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)]
    digest = hashlib.sha256(json.dumps([about, sorted(metadata.items())]).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
