"""What every job begins with and ends with: checked settings, a model's folder, the clip, a run folder.

What a transfer computes on its way is kept in its folder until it ends, so that it can be opened again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError, SettingsError
from ditflow.files import clear_unfinished, inside
from ditflow.guidance.targets import check_blocks
from ditflow.jobs import prompt_cache as prompts
from ditflow.jobs.device import choose_device, computing
from ditflow.memory.arrange import arrange, place
from ditflow.memory.meter import Meter
from ditflow.models.attention import check_attention
from ditflow.models.cogvideox import text
from ditflow.models.cogvideox import vae as autoencoder
from ditflow.models.cogvideox.schedule import Schedule
from ditflow.models.cogvideox.text import Texts
from ditflow.models.compiling import compiles
from ditflow.models.engine import check_engine, decode_with_tensorrt, denoise_with_tensorrt
from ditflow.models.loading import ModelFolder
from ditflow.models.lora import check_lora, split_scale
from ditflow.models.protocols import Runner
from ditflow.models.storage import check_weights
from ditflow.planning.fallback import Room, reading_only
from ditflow.progress import Progress
from ditflow.run_folder.checkpoint import StateFolder, keep_clip, kept_clip
from ditflow.run_folder.embeddings import fingerprint, read_embeddings
from ditflow.run_folder.fingerprint import identity
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import Run, create_run, versions
from ditflow.sampling.finite import NotFinite, check_finite
from ditflow.settings import Settings
from ditflow.settings.settings import MODELS

logger = logging.getLogger(__name__)

SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": ""}


@dataclass(frozen=True)
class Job:
    """A job that may begin, or go on: all that could be checked has been, and the run folder is its own."""

    room: Room
    folder: ModelFolder
    clip: video.Clip
    run: Run
    meter: Meter
    kept: StateFolder | None  # what has been computed so far; a transfer has it until it ends
    resumed: bool = False

    @classmethod
    @contextmanager
    def begin(
        cls, settings: Settings, progress: Progress, needs: tuple[str, ...], kind: str = ""
    ) -> Iterator[Job]:
        """Check and read what can be before any work; a run folder is made once all of that is well."""
        for name in needs:
            if not getattr(settings, name).strip():
                raise SettingsError(f"{name}: nothing given; use --{name}")
        settings = _from_anywhere(settings)
        device = choose_device(settings)
        check_choices(settings, device, settings.optimises and kind != "flow")
        clip = video.read_clip(
            settings.video,
            frames=settings.frames,
            start=settings.start,
            stride=settings.stride,
            size=settings.size,
            fit=settings.fit,
        )
        folder, room = _equip(settings, device, kind)
        if settings.saved_embedding:
            check_embedding(settings, folder)
        run = create_run(settings, kind)
        with locked(run.folder), computing(settings), room:
            kept = None if kind else StateFolder(run, identity(room.resolved, folder))
            if kept:
                keep_clip(kept, clip)
            job = cls(room, folder, clip, run, Meter(device, progress), kept)
            logger.info("run folder: %s, memory preset %s", run.folder, room.plan.preset.name)
            room.on_change = job.write_settings
            job.write_settings()  # from now on it can be opened again
            with _saying_how_to_resume(run) if kept else nullcontext():
                yield job

    @classmethod
    @contextmanager
    def reopen(
        cls,
        run: Run,
        progress: Progress,
        memory: str | None = None,  # in place of what the run had
        whole: bool = False,  # the run has ended before: only its results are there
    ) -> Iterator[Job]:
        """A transfer's folder again. Raises DitflowError where it is not as the run left it, or in use."""
        with locked(run.folder):
            clear_unfinished(run.folder)
            settings = run.settings()
            if memory:
                settings = replace(settings, memory=memory, preset="auto", decode_tile="auto")
            device = choose_device(settings)
            check_choices(settings, device, settings.optimises)
            folder = ModelFolder(settings.model, settings.dtype, device)
            kept = None if whole else StateFolder(run, identity(settings, folder))
            if kept:
                kept.check()  # all of it, before any work
                clip = kept_clip(kept)
            else:
                reference = inside(run.folder, video_name("reference", settings))
                clip = video.read_clip(reference, frames=settings.frames, size=None)
            folder, room = _equip(settings, device)
            with computing(settings), room, _saying_how_to_resume(run) if kept else nullcontext():
                job = cls(room, folder, clip, run, Meter(device, progress), kept, resumed=True)
                logger.info("going on with %s, memory preset %s", run.folder, room.plan.preset.name)
                room.on_change = job.write_settings
                job.write_settings()
                yield job

    @property
    def settings(self) -> Settings:
        """As they were resolved, and as a replay needs them."""
        return self.room.resolved

    def texts(self) -> Texts:
        """The prompt, the negative prompt and the clip's own, encoded unless an earlier run has."""
        settings, folder = self.settings, self.folder
        length = folder.config("transformer")["max_text_seq_length"]
        given = settings.prompt, settings.negative_prompt, settings.source_prompt
        tokens = text.tokenise(folder.tokenizer(), given, length)

        def encode(tokens: Tensor) -> Tensor:
            encoder = folder.text_encoder()
            blocks = text.blocks(encoder)
            resident = len(blocks) if self.room.plan.preset.text == "whole" else 0
            # each layer is needed once: gathering them in pinned memory would cost a copy more
            weights = place(encoder, blocks, folder.device, resident, host="pageable")
            return text.encode_tokens(encoder, tokens, weights)

        def work() -> dict[str, Tensor]:
            return vars(prompts.texts(folder, tokens, encode))

        return Texts(**self._once("texts", "text", work))

    def encode(self) -> Tensor:
        """The clip as latents [1, frames, channels, height, width]."""
        pixels = torch.from_numpy(self.clip.frames)

        def work() -> dict[str, Tensor]:
            return {"reference": autoencoder.encode(self.folder.vae(), pixels)}

        return self._once("reference", "encode", work)["reference"]

    def _once(self, name: str, phase: str, work: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What a phase computes, or has computed before the run was opened again."""
        if self.kept and self.kept.has(name):
            tensors, _ = self.kept.read(name)
            return {key: tensor.to(self.folder.device) for key, tensor in tensors.items()}
        with self.meter.phase(phase):
            found = self.room.run(phase, work)
        for key, tensor in found.items():
            check_finite(tensor, key)
        if self.kept:
            self.kept.write(name, found)
        return found

    def runner(self) -> Runner:
        """The model, its weights where the preset wants them."""
        settings, plan = self.settings, self.room.plan
        compiled = settings.compile == "on"
        backbone = self.folder.backbone(settings.lora, settings.weights, settings.attention, compiled)
        if settings.engine == "tensorrt":
            check_engine(settings.engine, False, self.folder.device, plan.streamed > 0)  # after a fall-back
            denoise_with_tensorrt(backbone)
        return arrange(backbone, self.folder.device, plan.preset, plan.resident)

    def decode(self, latents: Tensor) -> video.Clip:
        """The latents [1, frames, channels, height, width] as a video."""

        def work() -> Tensor:
            vae = self.folder.vae()
            if self.settings.engine == "tensorrt":
                decode_with_tensorrt(vae)
            return autoencoder.decode(vae, latents, self.settings.frames, self.settings.decode_tile)

        with self.meter.phase("decode"):
            return video.Clip(self.room.run("decode", work).numpy(), self.clip.frame_rate)

    def write(self, name: str, clip: video.Clip) -> None:
        """A clip into the run folder, in the format asked for, with the settings inside."""
        settings = self.settings
        path = inside(self.run.folder, video_name(name, settings))
        video.write_clip(clip, path, metadata=settings.to_yaml())

    def write_reference(self) -> None:
        """What the model sees of the clip, unless it is there already."""
        if not (self.run.folder / video_name("reference", self.settings)).exists():
            self.write("reference", self.clip)

    def write_settings(self) -> None:
        self.run.write_text("settings.yaml", self.settings.to_yaml())

    def end(self, **results: object) -> None:
        """Write what was measured (since it was resumed, where it was): the run is whole with it."""
        record = {"versions": versions(), "device": self.meter.device_name, "phases": self.meter.phases}
        self.run.write_json("run.json", record | {"resumed": self.resumed} | results)
        if self.kept:
            self.kept.remove()


def video_name(name: str, settings: Settings) -> str:
    """What the "result", "reference" or "comparison" of a run is called in its folder."""
    return f"{name}{SUFFIXES[settings.format]}"


def _equip(settings: Settings, device: torch.device, kind: str = "") -> tuple[ModelFolder, Room]:
    """The model and the memory of a job. Raises DitflowError where they do not do for it."""
    folder = ModelFolder(settings.model, settings.dtype, device)
    folder.check()
    check_blocks(settings, folder.config("transformer")["num_layers"])
    settings = replace(settings, compile="on" if compiles(settings.compile, device) else "off")
    whole = replace(settings, model=str(folder.path))  # whatever name found it
    planned = reading_only(settings, folder.path) if kind == "flow" else whole
    room = Room(settings, device, planned)
    check_engine(settings.engine, settings.optimises and kind != "flow", device, room.plan.streamed > 0)
    return folder, room


@contextmanager
def _saying_how_to_resume(run: Run) -> Iterator[None]:
    """Errors and interrupts leave with the advice; but not those that would come again."""
    try:
        yield
    except NotFinite:
        raise
    except (DitflowError, KeyboardInterrupt) as error:
        error.add_note(f"`ditflow resume {run.quoted}` goes on from there")
        raise


def check_choices(settings: Settings, device: torch.device, optimises: bool) -> None:
    """Raises DitflowError for what this machine, or the rest of the settings, cannot do; loads nothing."""
    check_attention(
        settings.attention, optimises, device, getattr(torch, settings.dtype), settings.deterministic
    )
    check_engine(settings.engine, optimises, device, streams=False)
    check_weights(settings.weights)
    if settings.lora and settings.weights.endswith(".gguf"):
        raise SettingsError("--lora needs whole weights to be added to: leave out --weights FILE.gguf")
    if settings.engine == "tensorrt" and settings.weights != "full":
        raise SettingsError("--engine tensorrt works with --weights full only")
    for lora in settings.lora:
        check_lora(lora)


def check_embedding(settings: Settings, folder: ModelFolder) -> None:
    """Raises DitflowError where the saved embedding is not one for these settings."""
    scheduler, cpu = folder.config("scheduler"), torch.device("cpu")
    schedule = Schedule(settings.scheduler, scheduler, settings.steps, cpu, torch.Generator())
    rotary = folder.config("transformer")["use_rotary_positional_embeddings"]
    facts = fingerprint(settings, schedule.timesteps, rotary)
    read_embeddings(Path(settings.saved_embedding), facts, settings.guided_steps)


def _from_anywhere(settings: Settings) -> Settings:
    """The settings with whole paths, so that a run can be repeated from another folder."""

    def whole(name: str) -> str:
        path = Path(os.path.expanduser(name))
        return str(path.resolve()) if path.exists() else name

    loras = []
    for lora in settings.lora:
        source, scale = split_scale(lora)
        loras.append(f"{whole(source)}:{scale}")
    return replace(
        settings,
        video=os.path.realpath(os.path.expanduser(settings.video)),
        model=settings.model if settings.model in MODELS else whole(settings.model),
        weights=whole(settings.weights) if settings.weights.endswith(".gguf") else settings.weights,
        lora=tuple(loras),
    )
