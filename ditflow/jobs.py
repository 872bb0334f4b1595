"""The jobs: transfer (also with a saved embedding) and flow. Each phase frees what it loads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ditflow import video
from ditflow.backbone import vae as autoencoder
from ditflow.backbone.cogvideox import CogVideoX
from ditflow.backbone.loading import ModelFolder
from ditflow.backbone.runner import Runner, Until
from ditflow.backbone.schedule import Schedule
from ditflow.backbone.text import Texts, encode_prompt
from ditflow.device import choose_device, computing
from ditflow.embeddings import FILE, fingerprint, load_embeddings, save_embeddings, saved_dtype
from ditflow.errors import SettingsError
from ditflow.guidance.injection import Injection
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.prepare import check_blocks, clip_features, prepare_guidance
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.meter import Meter
from ditflow.memory.plain import PlainRunner
from ditflow.progress import Progress
from ditflow.runs import Run, create_run, versions
from ditflow.sampling import Scale, Step, denoise
from ditflow.settings import Settings, changed

logger = logging.getLogger(__name__)

SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": ""}


@dataclass
class Denoised:
    """What the denoising phase leaves."""

    latents: Tensor  # [1, frames, channels, height, width]
    losses: list[list[float]]  # [guided steps][optimisation steps]
    skipped: int  # optimisation steps left out because float16 overflowed
    embeddings: list[Tensor] = field(default_factory=list)  # one a guided step, where they were optimised
    facts: dict[str, str] = field(default_factory=dict)  # what a run that uses the embeddings must share


def transfer(settings: Settings, progress: Progress | None = None) -> Run:
    """Make a new video with the clip's motion and the prompt's content; returns the run folder.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    progress = progress or Progress()
    for name in ("video", "prompt"):
        if not getattr(settings, name):
            raise SettingsError(f"{name}: nothing given; use --{name}")
    device = choose_device(settings)
    folder = ModelFolder(settings.model, settings.dtype, device)
    check_blocks(settings, folder.config("transformer")["num_layers"])
    clip = read_clip(settings)
    run = create_run(settings)
    run.write_text("settings.yaml", settings.to_yaml())
    logger.info("run folder: %s", run.folder)
    if clip.is_still and settings.rows == "moving":
        logger.warning("the clip shows no motion: there is nothing to transfer, the optimisation is left out")
        settings = changed(settings, guidance=False)
    write = clip_writer(run, settings)
    write("reference", clip)

    meter = Meter(device, progress)
    with computing(settings):
        with meter.phase("text"):
            texts = encode_texts(folder, settings)
        with meter.phase("encode"):
            reference = autoencoder.encode(folder.vae(), clip.frames)
        with meter.phase("denoise", settings.steps):
            runner = choose_runner(folder.backbone(settings.lora))
            denoised = denoise_clip(
                settings,
                runner,
                folder.config("scheduler"),
                texts,
                reference,
                lambda step: progress.step(_detail(step)),
            )
            del runner
        run.write_tensors("latents.safetensors", {"latents": denoised.latents, "reference": reference})
        if denoised.embeddings:
            save_embeddings(run, denoised.embeddings, denoised.facts)
        with meter.phase("decode"):
            frames = autoencoder.decode(folder.vae(), denoised.latents, settings.frames)

    result = video.Clip(frames, clip.frame_rate)
    write("result", result)
    write("comparison", video.side_by_side(clip, result))
    run.write_json("run.json", _record(meter, denoised))
    suffix = SUFFIXES[settings.format]
    logger.info("result: %s, beside the clip: %s", run.folder / f"result{suffix}", f"comparison{suffix}")
    return run


def flow(settings: Settings, progress: Progress | None = None) -> Run:
    """Read a clip's motion flow in each guidance block: as tensors, as a sheet and as arrows over the frames.

    Raises DitflowError (SettingsError where the settings are to blame) with one line that says what to do.
    """
    from ditflow.report.clip_flow import draw_flow

    progress = progress or Progress()
    if not settings.video:
        raise SettingsError("video: nothing given; use --video")
    device = choose_device(settings)
    folder = ModelFolder(settings.model, settings.dtype, device)
    check_blocks(settings, folder.config("transformer")["num_layers"])
    clip = read_clip(settings)
    run = create_run(settings, "flow")
    run.write_text("settings.yaml", settings.to_yaml())

    meter = Meter(device, progress)
    with computing(settings):
        with meter.phase("text"):
            source = encode_texts(folder, settings).source_prompt
        with meter.phase("encode"):
            reference = autoencoder.encode(folder.vae(), clip.frames)
        with meter.phase("flow"):
            runner = choose_runner(folder.backbone(settings.lora))
            grid = runner.backbone.grid(reference)
            until = Until(FlowLoss.reads, settings.guidance_blocks)
            read = clip_features(runner, until, reference, source, runner.backbone.embedding(grid))
            flows = FlowLoss(read, grid, settings).references
    run.write_tensors("flow.safetensors", {f"block_{block}": flow for block, flow in flows.items()})
    write = clip_writer(run, settings)
    write("reference", clip)
    for block, found in flows.items():
        sheet, arrows = draw_flow(
            clip, rearrange(found.cpu().numpy(), "q k (h w) c -> q k h w c", h=grid.height)
        )
        run.write_picture(f"flow_block_{block}.png", sheet)
        write(f"arrows_block_{block}", arrows)
    run.write_json("run.json", _record(meter))
    return run


def read_clip(settings: Settings) -> video.Clip:
    """The reference clip as the settings ask for it."""
    return video.read_clip(
        settings.video,
        frames=settings.frames,
        start=settings.start,
        stride=settings.stride,
        size=settings.size,
        fit=settings.fit,
    )


def clip_writer(run: Run, settings: Settings) -> Callable[[str, video.Clip], None]:
    """Writes clips into a run by name, in the format asked for, with the settings inside."""
    suffix, metadata = SUFFIXES[settings.format], settings.to_yaml()
    return lambda name, clip: video.write_clip(clip, run.folder / f"{name}{suffix}", metadata=metadata)


def choose_runner(backbone: CogVideoX) -> Runner:
    """On a GPU memory is what is short, so blocks are recomputed; on a CPU it is time."""
    return (BlockwiseRunner if backbone.device.type == "cuda" else PlainRunner)(backbone)


def encode_texts(folder: ModelFolder, settings: Settings) -> Texts:
    """The prompt, the negative prompt and the clip's own."""
    tokenizer, encoder = folder.text_encoder()
    length = folder.config("transformer")["max_text_seq_length"]
    return Texts(
        *(
            encode_prompt(tokenizer, encoder, text, length)
            for text in (settings.prompt, settings.negative_prompt, settings.source_prompt)
        )
    )


def denoise_clip(
    settings: Settings,
    runner: Runner,
    scheduler: dict,  # the model's scheduler configuration
    texts: Texts,
    reference: Tensor,  # [1, frames, channels, height, width] the encoded clip
    watch: Callable[[Step], None],  # hears of every denoising step
) -> Denoised:
    """From seed to clean latents with the clip's motion: all of a run between encoding and decoding."""
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    schedule = Schedule(settings.scheduler, scheduler, settings.steps, reference.device, generator)
    noise = schedule.initial_noise(reference.shape)
    grid = runner.backbone.grid(reference)
    own = runner.backbone.embedding(grid)
    facts = fingerprint(settings, schedule.timesteps.tolist(), own.shape)

    guidance = saved = None
    if settings.saved_embedding:
        saved = load_embeddings(Path(settings.saved_embedding), facts, settings.guided_steps, own)
    elif settings.guidance and settings.guided_steps:
        guidance = prepare_guidance(runner, settings, grid, reference, texts.source_prompt, own)
        if guidance.loss.still:
            logger.warning("the clip shows no motion in the guided blocks: there is nothing to transfer")
    keeps = guidance is not None and guidance.variable == "embedding"
    result = Denoised(noise, [], 0, facts=facts)
    if keeps:
        size = own.numel() * saved_dtype(settings).itemsize * settings.guided_steps
        logger.info("%s will take %.1f MB", FILE, size / 1e6)

    def on_step(step: Step) -> None:
        if step.losses:
            result.losses.append(step.losses)
        if keeps and step.index < settings.guided_steps:
            result.embeddings.append(step.embedding.to("cpu", saved_dtype(settings)))
        watch(step)

    result.latents = denoise(
        runner,
        schedule,
        noise,
        own,
        texts,
        Scale(settings.guidance_scale, settings.dynamic_scale),
        settings.guided_steps,
        guidance,
        Injection(settings.injection_blocks, reference, noise, own) if settings.injection else None,
        saved,
        on_step,
    )
    if guidance and guidance.scale.skipped:
        result.skipped = guidance.scale.skipped
        logger.warning("%d optimisation steps overflowed in float16 and were left out", result.skipped)
    return result


def _detail(step: Step) -> str:
    return f"loss {step.losses[-1]:.4f}" if step.losses else ""


def _record(meter: Meter, denoised: Denoised | None = None) -> dict:
    record = {"versions": versions(), "device": meter.device_name, "phases": meter.phases}
    if denoised:
        record |= {"losses": denoised.losses, "skipped_optimisation_steps": denoised.skipped}
    return record
