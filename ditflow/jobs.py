"""The jobs: transfer (also with a saved embedding) and flow. Each phase frees what it loads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ditflow import prompts, video
from ditflow.backbone import vae as autoencoder
from ditflow.backbone.cogvideox import CogVideoX
from ditflow.backbone.loading import ModelFolder
from ditflow.backbone.lora import check_lora, split_scale
from ditflow.backbone.runner import Runner, Until
from ditflow.backbone.schedule import Schedule
from ditflow.backbone.text import Texts, encode_tokens, tokenise
from ditflow.denoising import Denoising
from ditflow.device import choose_device, computing
from ditflow.embeddings import fingerprint, read_embeddings, save_embeddings
from ditflow.errors import SettingsError
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.prepare import check_blocks, clip_features
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.meter import Meter
from ditflow.memory.plain import PlainRunner
from ditflow.progress import Progress
from ditflow.report.clip_flow import draw_flow
from ditflow.runs import Run, create_run, versions
from ditflow.sampling import Step
from ditflow.settings import MODELS, Settings

logger = logging.getLogger(__name__)

SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": ""}


def transfer(settings: Settings, progress: Progress | None = None) -> Run:
    """Make a new video with the clip's motion and the prompt's content; returns the run folder.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    progress = progress or Progress()
    job = Job.begin(settings, progress, needs=("video", "prompt"))
    settings = job.settings
    if job.clip.is_still and settings.rows == "moving":
        logger.warning("the clip shows no motion: there is nothing to transfer, the optimisation is left out")
        settings = replace(settings, guidance=False)

    def tell(step: Step) -> None:
        progress.step(f"loss {step.losses[-1]:.4f}" if step.losses else "")

    folder, meter = job.folder, job.meter
    with computing(settings):
        texts, reference = job.encode()
        with meter.phase("denoise", settings.steps):
            runner = choose_runner(folder.backbone(settings.lora), folder.device)
            denoised = Denoising(settings, folder.config("scheduler"), texts, reference, tell).run(runner)
            del runner
        job.run.write_tensors("latents.safetensors", {"latents": denoised.latents, "reference": reference})
        if denoised.embeddings:
            save_embeddings(job.run, denoised.embeddings, denoised.facts)
        with meter.phase("decode"):
            frames = autoencoder.decode(folder.vae(), denoised.latents, settings.frames)

    result = video.Clip(frames.numpy(), job.clip.frame_rate)
    job.write("result", result)
    job.write("comparison", video.side_by_side(job.clip, result))
    job.end(losses=denoised.losses, skipped_optimisation_steps=denoised.skipped)
    suffix = SUFFIXES[settings.format]
    logger.info("result: %s, beside the clip: comparison%s", job.run.folder / f"result{suffix}", suffix)
    return job.run


def flow(settings: Settings, progress: Progress | None = None) -> Run:
    """Read a clip's motion flow in each guidance block: as tensors, as a sheet and as arrows over the frames.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    job = Job.begin(settings, progress or Progress(), needs=("video",), kind="flow")
    with computing(settings):
        texts, reference = job.encode()
        with job.meter.phase("flow"):
            runner = choose_runner(job.folder.backbone(settings.lora), job.folder.device)
            grid = runner.backbone.grid(reference)
            until = Until(FlowLoss.reads, settings.guidance_blocks)
            own = runner.backbone.embedding(grid)
            read = clip_features(runner, until, reference, texts.source_prompt, own)
            flows = FlowLoss(read, grid, settings).references
    job.run.write_tensors("flow.safetensors", {f"block_{block}": found for block, found in flows.items()})
    for block, found in flows.items():
        pairs = rearrange(found.cpu().numpy(), "q k (h w) c -> q k h w c", h=grid.height)
        sheet, arrows = draw_flow(job.clip, pairs)
        job.run.write_picture(f"flow_block_{block}.png", sheet)
        job.write(f"arrows_block_{block}", arrows)
    job.end()
    return job.run


@dataclass(frozen=True)
class Job:
    """What every job begins with: checked settings, a model's folder, the clip, and a run folder."""

    settings: Settings
    folder: ModelFolder
    clip: video.Clip
    run: Run
    meter: Meter

    @classmethod
    def begin(cls, settings: Settings, progress: Progress, needs: tuple[str, ...], kind: str = "") -> Job:
        """Check and read what can be before any work; a run folder is made once all of that is well."""
        for name in needs:
            if not getattr(settings, name):
                raise SettingsError(f"{name}: nothing given; use --{name}")
        settings = _from_anywhere(settings)
        device = choose_device(settings)
        for lora in settings.lora:
            check_lora(lora)
        clip = video.read_clip(
            settings.video,
            frames=settings.frames,
            start=settings.start,
            stride=settings.stride,
            size=settings.size,
            fit=settings.fit,
        )
        folder = ModelFolder(settings.model, settings.dtype, device)
        check_blocks(settings, folder.config("transformer")["num_layers"])
        if settings.saved_embedding:
            check_embedding(settings, folder)
        job = cls(settings, folder, clip, create_run(settings, kind), Meter(device, progress))
        logger.info("run folder: %s", job.run.folder)
        job.run.write_text("settings.yaml", settings.to_yaml())
        job.write("reference", clip)
        return job

    def encode(self) -> tuple[Texts, Tensor]:
        """The texts, and the clip as latents [1, frames, channels, height, width]."""
        with self.meter.phase("text"):
            texts = encode_texts(self.folder, self.settings)
        with self.meter.phase("encode"):
            return texts, autoencoder.encode(self.folder.vae(), torch.from_numpy(self.clip.frames))

    def write(self, name: str, clip: video.Clip) -> None:
        """A clip into the run folder, in the format asked for, with the settings inside."""
        path = self.run.folder / f"{name}{SUFFIXES[self.settings.format]}"
        video.write_clip(clip, path, metadata=self.settings.to_yaml())

    def end(self, **results: object) -> None:
        """Write what was measured."""
        record = {"versions": versions(), "device": self.meter.device_name, "phases": self.meter.phases}
        self.run.write_json("run.json", record | results)


def choose_runner(backbone: CogVideoX, device: torch.device) -> Runner:
    """On a GPU memory is what is short, so blocks are recomputed; on a CPU it is time."""
    backbone.transformer.to(device)
    return (BlockwiseRunner if backbone.device.type == "cuda" else PlainRunner)(backbone)


def encode_texts(folder: ModelFolder, settings: Settings) -> Texts:
    """The prompt, the negative prompt and the clip's own."""
    length = folder.config("transformer")["max_text_seq_length"]
    texts = (settings.prompt, settings.negative_prompt, settings.source_prompt)
    tokens = tokenise(folder.tokenizer(), texts, length)

    def encode(tokens: Tensor) -> Tensor:
        return encode_tokens(folder.text_encoder().to(folder.device), tokens)

    return prompts.texts(folder, tokens, encode)


def check_embedding(settings: Settings, folder: ModelFolder) -> None:
    """Raises DitflowError where the saved embedding is not one for these settings."""
    scheduler, cpu = folder.config("scheduler"), torch.device("cpu")
    schedule = Schedule(settings.scheduler, scheduler, settings.steps, cpu, torch.Generator())
    rotary = folder.config("transformer")["use_rotary_positional_embeddings"]
    facts = fingerprint(settings, schedule.timesteps.tolist(), rotary)
    read_embeddings(Path(settings.saved_embedding), facts, settings.guided_steps)


def _from_anywhere(settings: Settings) -> Settings:
    """The settings with whole paths, so that a run can be repeated from another folder."""

    def whole(name: str) -> str:
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name

    loras = []
    for lora in settings.lora:
        source, scale = split_scale(lora)
        loras.append(f"{whole(source)}:{scale}")
    video_path = str(Path(settings.video).expanduser().resolve())
    model = settings.model if settings.model in MODELS else whole(settings.model)
    return replace(settings, video=video_path, model=model, lora=tuple(loras))
