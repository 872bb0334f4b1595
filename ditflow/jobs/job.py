"""A job and the phases of its run.

A transfer saves its results so far in its run folder until it is finished, so that it can be reopened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.jobs.checks import make_schedule
from ditflow.jobs.prompt_cache import encode_texts
from ditflow.memory.meter import Meter
from ditflow.memory.placement import arrange, place
from ditflow.memory.torch_state import torch_state
from ditflow.models.engine import decode_with_tensorrt, denoise_with_tensorrt
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Runner, Schedule, Texts
from ditflow.models.tiles import each_tile
from ditflow.motion.chosen import ChosenMotion
from ditflow.planning.fallback import MemoryFallback
from ditflow.run_folder.checkpoint import StateFolder
from ditflow.run_folder.digests import clip_digest
from ditflow.run_folder.run import RECORD, SETTINGS, Run, settings_text, versions, video_name
from ditflow.sampling.finite import check_finite
from ditflow.settings import Settings

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
