"""A job: checked settings, the model's folder, the clip, the run folder and its lock.

A transfer saves its results so far in its run folder until it is finished, so that it can be reopened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError, TemporaryError, interruption
from ditflow.files import clear_unfinished
from ditflow.jobs.checks import check_run, make_schedule, warn_without_effect, with_absolute_paths
from ditflow.jobs.device import choose_device, computing
from ditflow.jobs.given import NOTHING, Given
from ditflow.jobs.kept import checkpoint_of, chosen_of, shapes_of
from ditflow.jobs.needs import check_given
from ditflow.jobs.prompt_cache import encode_texts
from ditflow.memory.meter import Meter
from ditflow.memory.placement import arrange, place
from ditflow.memory.torch_state import torch_state
from ditflow.models.engine import decode_with_tensorrt, denoise_with_tensorrt
from ditflow.models.families import family_of
from ditflow.models.kept import KeptParts
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Runner, Schedule, Texts
from ditflow.models.tiles import each_tile
from ditflow.motion.choose import choose_motion
from ditflow.motion.chosen import ChosenMotion
from ditflow.motion.motion_file import read_drawing
from ditflow.motion.source import source_clip
from ditflow.planning.fallback import MemoryFallback, reading_only
from ditflow.progress import Progress
from ditflow.run_folder.checkpoint import StateFolder, load_clip, save_clip
from ditflow.run_folder.chosen import save_chosen
from ditflow.run_folder.digests import clip_digest
from ditflow.run_folder.lock import locked
from ditflow.run_folder.run import (
    RECORD,
    SETTINGS,
    Run,
    check_latents_shape,
    check_output_name,
    create_run,
    settings_text,
    versions,
    video_name,
)
from ditflow.sampling.finite import check_finite
from ditflow.settings import Settings

logger = logging.getLogger(__name__)

Check = Callable[[Settings, ModelFolder], None]  # raises DitflowError
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """A validated job that holds its run-folder lock."""

    memory: MemoryFallback
    folder: ModelFolder
    clip: video.Clip
    run: Run
    meter: Meter
    checkpoint: StateFolder | None = None  # of an unfinished transfer
    saved_embeddings: list[Tensor] | None = None  # replace optimisation
    resumed: bool = False
    chosen: ChosenMotion | None = None  # instead of the clip's whole motion as it is

    @classmethod
    @contextmanager
    def begin(
        cls,
        settings: Settings,
        progress: Progress,
        needs: tuple[str, ...],
        kind: str = "",
        check: Check = lambda settings, folder: None,  # what else the job wants of the model
        given: Given = NOTHING,
    ) -> Iterator[Job]:
        """Start a new job. The run folder is created only after everything has been read and checked."""
        check_given(settings, *needs)
        check_output_name(settings.output)
        settings = with_absolute_paths(settings)
        settings_text(settings)  # refuses settings that could not be read back
        with computing(settings), cls._begin(settings, progress, kind, check, given) as job:
            yield job

    @classmethod
    @contextmanager
    def _begin(
        cls, settings: Settings, progress: Progress, kind: str, check: Check, given: Given
    ) -> Iterator[Job]:
        device = choose_device(settings)
        family = family_of(settings.model, download=True)
        drawing = read_drawing(Path(settings.motion)) if settings.motion else None
        clip = source_clip(settings, drawing, family, given.clip)
        needs_gradient = settings.needs_gradient and kind != "flow"
        settings, folder, saved = check_run(settings, device, needs_gradient, given.kept)
        check(settings, folder)
        if not kind:
            warn_without_effect(settings)
        chosen = None
        if settings.chooses_motion and (settings.optimises or kind == "flow"):
            spans = folder.family.latent_spans(settings.frames)
            grid = folder.grid(settings.frames, settings.size)
            chosen = choose_motion(settings, clip, drawing, grid, spans, given.clip)
        memory = _plan_memory(settings, folder, reads_only=kind == "flow")
        run = create_run(settings, kind, given.exact_folder)
        with locked(run.folder):
            checkpoint = None if kind else checkpoint_of(run, memory.resolved, folder, clip, chosen)
            if checkpoint:
                save_clip(checkpoint, clip, torch.get_num_threads())
                if chosen:
                    save_chosen(run, chosen)
            meter = Meter(device, progress)
            job = cls(memory, folder, clip, run, meter, checkpoint, saved, chosen=chosen)
            with job._working(f"run folder: {run.folder}"):
                yield job

    @classmethod
    @contextmanager
    def reopen(
        cls,
        run: Run,
        progress: Progress,
        memory: str | None = None,  # replaces the setting that the run had, and then `preset` its preset
        preset: str = "auto",
        finished: bool = False,  # a finished run has results and no checkpoint
        kept: KeptParts | None = None,
    ) -> Iterator[Job]:
        """Reopen a transfer's folder. Raises DitflowError if it is damaged, has changed or is in use."""
        with locked(run.folder):
            clear_unfinished(run.folder)
            settings = run.settings()
            if memory:
                settings = replace(settings, memory=memory, preset=preset, decode_tile="auto")
            with computing(settings):
                device = choose_device(settings)
                settings, folder, saved = check_run(settings, device, settings.needs_gradient, kept)
                checkpoint = threads = None
                chosen = chosen_of(run, settings, folder)
                if finished:
                    clip = run.clip("reference", settings)
                else:
                    clip, threads = load_clip(run)
                    checkpoint = checkpoint_of(run, settings, folder, clip, chosen)
                    shapes = shapes_of(settings, folder)
                    if state := checkpoint.check(shapes):  # every file, before any work
                        schedule = make_schedule(settings, folder, torch.Generator())
                        shapes.check_state(checkpoint.path("step"), state.index, state.schedule, schedule)
                        shapes.check_reuse(checkpoint.path("step"), state.reuse)
                fallback = _plan_memory(settings, folder)
                meter = Meter(device, progress)
                given = clip, run, meter, checkpoint, saved
                job = cls(fallback, folder, *given, resumed=True, chosen=chosen)
                with (
                    computing(settings, threads if device.type == "cpu" else None),
                    job._working(f"continuing {run.folder}"),
                ):
                    yield job

    @classmethod
    @contextmanager
    def reading(cls, run: Run, settings: Settings, latents: Tensor) -> Iterator[Job]:
        """A job that reads the motion of a finished run's latents with its model, and writes nothing."""
        with computing(settings):
            device = choose_device(settings)
            settings, folder, _ = check_run(
                replace(settings, saved_embedding=""), device, needs_gradient=False
            )
            shape = folder.latent_shape(settings.frames, settings.size)
            check_latents_shape(run.folder, latents, shape)  # before planning for wrong settings
            memory = _plan_memory(settings, folder, reads_only=True)
            clip, meter = run.clip("reference", settings), Meter(device, Progress())
            job = cls(memory, folder, clip, run, meter, chosen=chosen_of(run, settings, folder))
            with memory:
                yield job

    @contextmanager
    def _working(self, headline: str) -> Iterator[None]:
        """Apply the memory limit, and add to errors how to resume."""
        if not self.settings.has_clip:
            logger.info("no clip: no motion is read, and nothing is injected")
        with self.memory, _resume_hint(self.run) if self.checkpoint else nullcontext():
            logger.info("%s, %s", headline, self.memory.summary)
            self.memory.on_change = self.write_settings
            self.meter.progress.begin(self.run.folder)
            self.write_settings()  # from now on the run can be reopened
            yield

    @property
    def settings(self) -> Settings:
        """The settings with `auto` resolved, as a replay needs them."""
        return self.memory.resolved

    def texts(self) -> Texts:
        """The encoded prompt, negative prompt and source prompt, from the cache if it has them."""
        settings, folder = self.settings, self.folder
        tokens = folder.tokenise([settings.prompt, settings.negative_prompt, settings.source_prompt])

        def encode(tokens: Tensor) -> Tensor:
            encoder = folder.text_encoder()
            resident = len(encoder.layers) if self.memory.plan.preset.text == "whole" else 0
            # each layer is used once, so gathering the layers in pinned memory would only add a copy
            weights = place(encoder.network, encoder.layers, folder.device, resident, host="pageable")
            with torch_state(fp16_sums=False):  # runs that add in float32 read the cached embeddings too
                return encoder.encode(tokens, weights)

        def work() -> dict[str, Tensor]:
            return vars(encode_texts(folder, tokens, encode))

        return Texts(**self._once("texts", "text", work))

    def encode(self) -> Tensor:
        """The clip's latents [1, frames, channels, height, width]."""
        pixels = torch.from_numpy(self.clip.frames)

        def encode() -> Tensor:
            autoencoder = self.folder.autoencoder()
            with each_tile(autoencoder, self.meter.progress.substep):
                return autoencoder.encode(pixels)

        def work() -> dict[str, Tensor]:
            rounding = torch.get_num_threads(), self.settings.deterministic, self.settings.compute
            return {"reference": self.folder.encoded((clip_digest(self.clip), *rounding), encode)}

        reference = self._once("reference", "encode", work)["reference"]
        if not reference.any():
            raise DitflowError(
                f"the encoded clip is 0 everywhere: the VAE of {self.settings.model} is damaged (see its "
                "`scaling_factor`)"
            )
        return reference

    def _once(self, name: str, phase: str, work: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The result of a phase: from the checkpoint if it has it, else computed and saved there."""
        if self.checkpoint and self.checkpoint.has(name):
            tensors, _ = self.checkpoint.read(name)
            return {key: tensor.to(self.folder.device) for key, tensor in tensors.items()}
        with self.meter.phase(phase):
            found = self.compute(phase, work)
        for key, tensor in found.items():
            check_finite(tensor, key)
        if self.checkpoint:
            self.checkpoint.write(name, found)
        return found

    def compute(self, phase: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, with smaller memory plans if needed; then no kept part is on the device."""

        def attempt() -> Result:
            try:
                return work()
            finally:
                self.folder.send_home()

        return self.memory.run(phase, attempt)

    def schedule(self) -> Schedule:
        """A new schedule whose noise comes from the settings' seed."""
        generator = torch.Generator("cpu").manual_seed(self.settings.seed)
        return make_schedule(self.settings, self.folder, generator)

    def runner(self, expert: int = 0) -> Runner:
        """A runner of an expert's transformer, with the weights placed as the preset says."""
        settings, plan = self.settings, self.memory.plan
        compiled = settings.compile == "on"
        attention = settings.attention, compiled, settings.attention_without_gradient
        stored = settings.lora, settings.weights_of(expert)
        transformer = self.folder.transformer(*stored, *attention, settings.compute, expert)
        if settings.engine == "tensorrt":
            denoise_with_tensorrt(transformer)
        return arrange(transformer, self.folder.device, plan.preset, plan.resident)

    def decode(self, latents: Tensor) -> video.Clip:
        """Decode latents [1, frames, channels, height, width] to a video."""

        def work() -> Tensor:
            autoencoder = self.folder.autoencoder()
            if self.settings.engine == "tensorrt":
                decode_with_tensorrt(autoencoder)
            with each_tile(autoencoder, self.meter.progress.substep):
                return autoencoder.decode(latents, self.settings.frames, self.settings.decode_tile)

        with self.meter.phase("decode"):
            return video.Clip(self.compute("decode", work).numpy(), self.clip.frame_rate)

    def write(self, name: str, clip: video.Clip) -> None:
        """Write a clip to the run folder, in the requested format, with the settings as metadata."""
        settings = self.settings
        with self.run.writing(video_name(name, settings)) as path:
            own = self.checkpoint is not None  # an unfinished run replaces its own frames
            video.write_clip(clip, path, metadata=settings.to_yaml(), replace_frames=own)

    def write_reference(self) -> None:
        """Write the clip as the model sees it, unless that was done before."""
        if not (self.run.folder / video_name("reference", self.settings)).exists():
            self.write("reference", self.clip)

    def write_settings(self) -> None:
        self.run.write_text(SETTINGS, settings_text(self.settings))

    def end(self, **results: object) -> None:
        """Finish the run: write run.json with this process's measurements, and remove the checkpoint."""
        record = {"versions": versions(), "device": self.meter.device_name, "phases": self.meter.phases}
        record["threads"] = torch.get_num_threads()
        self.run.write_json(RECORD, record | {"resumed": self.resumed} | results)
        if self.checkpoint:
            self.checkpoint.remove()


def _plan_memory(settings: Settings, folder: ModelFolder, reads_only: bool = False) -> MemoryFallback:
    """The memory plan of a job. Raises DitflowError if no preset fits."""
    planned = replace(settings, model=str(folder.path))  # the model by its folder, whatever name was given
    if reads_only:
        planned = reading_only(settings, folder.path)
    return MemoryFallback(settings, folder.device, planned)


@contextmanager
def _resume_hint(run: Run) -> Iterator[None]:
    """Add to interrupts, and to errors that need not recur, how to resume."""
    try:
        yield
    except BaseException as error:
        may_help = isinstance(error, TemporaryError) or interruption(error)
        if may_help and (run.folder / SETTINGS).is_file():  # else there is nothing to resume
            error.add_note(f"`ditflow resume {run.quoted}` continues from there")
        raise
