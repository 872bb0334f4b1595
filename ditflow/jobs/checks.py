"""Checks a run's settings against the machine and the model, before any work."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from ditflow.errors import SettingsError
from ditflow.guidance.targets import check_blocks
from ditflow.jobs.small_models import warn_of_limits
from ditflow.models.attention import check_attention, fastest_forward
from ditflow.models.compiling import compiles
from ditflow.models.compute import check_compute
from ditflow.models.engine import check_engine
from ditflow.models.experts import split_expert
from ditflow.models.families import models
from ditflow.models.kept import KeptParts
from ditflow.models.loading import ModelFolder
from ditflow.models.lora import check_lora, split_lora
from ditflow.models.protocols import Schedule
from ditflow.models.storage import check_weights
from ditflow.run_folder.embeddings import embedding_facts, read_embeddings
from ditflow.settings import Settings
from ditflow.settings.speed import speed_settings
from ditflow.video.reading import IN_MEMORY

logger = logging.getLogger(__name__)


def check_run(
    settings: Settings, device: torch.device, needs_gradient: bool, kept: KeptParts | None = None
) -> tuple[Settings, ModelFolder, list | None]:
    """Refuse settings that this machine, the model or other settings rule out. Loads no weights.

    Checks that need no model come first, so that nothing is downloaded in vain. Returns the settings with
    `compile` and `attention_forward` decided, the model's folder, and the saved embeddings, if they replace
    optimisation.

    Raises DitflowError; SettingsError if the settings contradict each other.
    """
    dtype = getattr(torch, settings.dtype)
    deterministic = settings.deterministic
    check_attention(settings.attention, needs_gradient, device, dtype, deterministic)
    if settings.attention_forward == "auto":
        settings = replace(settings, attention_forward=fastest_forward(device, dtype, deterministic))
    if settings.attention_forward != "same":
        forward = settings.attention_without_gradient
        check_attention(forward, False, device, dtype, deterministic, flag="--attention-forward")
    check_engine(settings.engine, needs_gradient, device)
    for kind in settings.weight_kinds:
        check_weights(kind)
        check_compute(settings.compute, kind, settings.engine, dtype, device)
    if settings.lora and any(kind.endswith(".gguf") for kind in settings.weight_kinds):
        raise SettingsError("--lora cannot be merged into a GGUF file; leave out --lora or --weights")
    if settings.engine == "tensorrt" and settings.weight_kinds != ["full"]:
        raise SettingsError("--engine tensorrt works only with --weights full")
    for lora in settings.lora:
        check_lora(lora)
    settings = replace(settings, compile="on" if compiles(settings.compile, device) else "off")

    folder = ModelFolder(settings.model, settings.dtype, device, kept)
    folder.check()
    folder.check_loras(settings.lora)
    for kind in settings.weight_kinds:
        folder.check_weights(kind)
    folder.family.latent_shape(settings.frames, settings.size, folder.config("vae"))  # refuses wrong sizes
    check_blocks(settings, folder.depth)
    saved = saved_embeddings(settings, folder)
    warn_of_limits(settings, needs_gradient)
    folder.tokenise([settings.prompt, settings.negative_prompt, settings.source_prompt])
    return settings, folder, saved


def warn_without_effect(settings: Settings) -> None:
    """Say which settings that save work cannot do so in this run, unless `--speed` chose them."""

    def given(*names: str) -> bool:
        return any(getattr(settings, name) != speed_settings(settings.speed)[name] for name in names)

    negative = given("negative", "negative_below")
    guides = settings.guidance and settings.guided_steps
    if given("gradients", "gradient_reuse") and not guides:
        logger.warning("gradients, gradient_reuse: nothing is optimised, so they change nothing")
    if settings.x0_after < 1 and not guides:
        logger.warning("x0_after: nothing is optimised, so it changes nothing")
    elif settings.x0_after < 1 and settings.gradient_steps == settings.guided_steps:
        logger.warning("x0_after: it rounds to all guided steps, so it changes nothing")
    if settings.chooses_motion and not settings.optimises:
        logger.warning("%s: nothing is optimised, so it changes nothing", settings.chosen_by[0])
    if (negative or given("step_cache")) and settings.guided_steps == settings.steps_made:
        logger.warning("negative, negative_below, step_cache: every step is guided, so they change nothing")
    elif negative and {*settings.guidance_scale} == {1} and not settings.dynamic_scale:
        logger.warning("negative, negative_below: with a guidance scale of 1 there is no negative prompt")


def saved_embeddings(settings: Settings, folder: ModelFolder) -> list[torch.Tensor] | None:
    """The embeddings that replace optimisation. Raises DitflowError if they were made for other settings."""
    if not settings.saved_embedding:
        return None
    timesteps = make_schedule(settings, folder, torch.Generator()).timesteps
    facts = embedding_facts(settings, timesteps, folder.embedding_kind)
    return read_embeddings(Path(settings.saved_embedding), facts, settings.guided_steps)


def make_schedule(settings: Settings, folder: ModelFolder, generator: torch.Generator) -> Schedule:
    """A new schedule of the steps that a run with these settings makes."""
    return folder.schedule(
        settings.scheduler, settings.steps, settings.size, generator, settings.skipped_steps
    )


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings with absolute paths, so that the run can be repeated from another folder."""

    def absolute(name: str) -> str:
        path = Path(os.path.expanduser(name))
        return os.path.abspath(path) if path.exists() else name  # not resolved: a link has the suffix

    def absolute_weights(given: str) -> str:
        _, kind = split_expert(given)
        return given.removesuffix(kind) + absolute(kind) if kind.endswith(".gguf") else given

    loras = map(split_lora, settings.lora)
    return replace(
        settings,
        video=settings.video
        if settings.video in ("", IN_MEMORY)
        else os.path.realpath(os.path.expanduser(settings.video)),
        model=settings.model if settings.model in models() else absolute(settings.model),
        output=os.path.expanduser(settings.output),
        mask=settings.mask if settings.mask in ("", "auto") else absolute(settings.mask),
        camera_from=settings.camera_from and absolute(settings.camera_from),
        motion=settings.motion and absolute(settings.motion),
        saved_embedding=settings.saved_embedding and absolute(settings.saved_embedding),
        weights=tuple(map(absolute_weights, settings.weights)),
        lora=tuple(str(lora._replace(source=absolute(lora.source))) for lora in loras),
    )
