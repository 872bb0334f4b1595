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
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditflow.errors import DitflowError, TemporaryError
from ditflow.files import clear_unfinished, inside
from ditflow.models.protocols import SchedulerState
from ditflow.run_folder.fingerprint import KEYS, check_fingerprint, check_format
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import STATE, Run, read_tensors
from ditflow.run_folder.schema import CLIP, GUIDANCE, REUSE, STEP, Shapes, check_facts
from ditflow.video import Clip


@dataclass(frozen=True)
class State:
    """What the next denoising step needs, and the results collected so far."""

    index: int  # of the last finished step; -1 before the first
    latents: Tensor  # [1, frames, channels, height, width]
    embedding: Tensor | None  # the optimised one, if the next guided step starts from it
    schedule: SchedulerState
    losses: list[list[float]]  # [guided steps][gradients]
    skipped: int  # optimisation steps skipped because float16 overflowed
    embeddings: list[Tensor]  # one for each guided step, if they are optimised
    steps: list[dict[str, Any]] = field(default_factory=list)  # what each step did, for run.json
    reuse: Mapping[str, Tensor] = field(default_factory=dict)  # what later steps may reuse, by name
    guidance: Mapping[str, Tensor] = field(default_factory=dict)  # what the next guided step needs, by name


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
        metadata["checksum"] = checksum(here, metadata)
        with self.run.writing(STATE) as folder:
            if self._files is None:
                self._files = _made(folder)
            self._files.write_tensors(self.path(name).name, here, metadata)

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and facts as they were written."""
        path = inside(self.folder, self.path(name).name)
        tensors, metadata = _read(path)
        check_fingerprint(path, metadata, self.fingerprint)
        try:
            return tensors, {key: json.loads(value) for key, value in metadata.items() if key not in KEYS}
        except (ValueError, RecursionError) as error:
            raise DitflowError(f"{path} is damaged ({error}): start a new run") from None

    def check(self, shapes: Shapes) -> State | None:
        """The last state. Raises DitflowError if a file is missing or cannot be resumed from."""
        for path in sorted(self.folder.glob("*.safetensors")):
            shapes.check(path, self.read(path.stem)[0])
        return read_state(self)

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def save_clip(files: StateFolder, clip: Clip, threads: int) -> None:
    """Save the clip, and the number of CPU threads, which changes results by rounding."""
    rate = clip.frame_rate.as_integer_ratio()
    files.write("clip", {"frames": torch.from_numpy(clip.frames)}, frame_rate=rate, threads=threads)


def load_clip(run: Run) -> tuple[Clip, int | None]:
    """The clip of a run's checkpoint, bit for bit, and the run's threads, if they are known.

    It is read before the run's fingerprint, which depends on it, is known. Raises like `StateFolder`.
    """
    path = inside(run.folder, f"{STATE}/clip.safetensors")
    tensors, metadata = _read(path)
    try:
        facts = {key: json.loads(metadata[key]) for key in ("frame_rate", "threads") if key in metadata}
    except (ValueError, RecursionError) as error:
        raise DitflowError(f"{path} is damaged ({error}): start a new run") from None
    check_facts(path, facts, CLIP)
    frames = tensors.get("frames")
    if frames is None or frames.dtype != torch.uint8 or frames.ndim != 4:
        raise DitflowError(f"{path} is damaged (it holds no frames): start a new run")
    return Clip(frames.numpy(), Fraction(*facts["frame_rate"])), facts.get("threads")


def read_state(files: StateFolder) -> State | None:
    """The last written state; None before the first step. Raises like `StateFolder`."""
    if not files.has("step"):
        return None
    tensors, facts = files.read("step")
    check_facts(files.path("step"), facts, STEP)
    reuse, guidance = _taken(tensors, REUSE), _taken(tensors, GUIDANCE)
    embeddings = [files.read(_embedding(index))[0] for index in range(facts["embeddings"])]
    return State(
        index=facts["index"],
        losses=facts["losses"],
        skipped=facts["skipped"],
        latents=tensors.pop("latents"),
        embedding=tensors.pop("embedding", None),
        schedule=tensors,
        embeddings=[tensors["embedding"] for tensors in embeddings],
        steps=facts.get("steps", []),
        reuse=reuse,
        guidance=guidance,
    )


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors whose names begin so out of a file's tensors."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def clear_leftovers(run: Run) -> None:
    """Remove the checkpoint that a finished run still has if it was killed before removing it."""
    if (folder := run.folder / STATE).is_dir() and not folder.is_symlink():
        with locked(run.folder):
            clear_unfinished(run.folder)
            shutil.rmtree(folder)


class StateWriter:
    """Writes states in a thread while the run computes. Only the newest waiting state is written.

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
        for prefix, named in ((REUSE, state.reuse), (GUIDANCE, state.guidance)):
            tensors |= {f"{prefix}{name}": tensor for name, tensor in named.items()}
        if state.embedding is not None:
            tensors["embedding"] = state.embedding
        self.files.write(
            "step",
            tensors,
            index=state.index,
            losses=state.losses,
            skipped=state.skipped,
            embeddings=len(state.embeddings),
            steps=state.steps,
        )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a checkpoint file whose format and checksum are right."""
    tensors, metadata = read_tensors(path, "every unfinished transfer has one; start a new run")
    check_format(path, metadata)
    if metadata.pop("checksum", None) != checksum(tensors, metadata):
        raise DitflowError(f"{path} is damaged (its checksum does not match): start a new run")
    return tensors, metadata


def _made(folder: Path) -> Run:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise TemporaryError(f"{folder} cannot be written ({error.strerror}): free some space") from error
    return Run(folder)


def _embedding(index: int) -> str:
    return f"embedding_{index:03}"


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the tensors' names, types, shapes and bytes, and of the metadata."""
    about = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)]
    digest = hashlib.sha256(json.dumps([about, sorted(metadata.items())]).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
