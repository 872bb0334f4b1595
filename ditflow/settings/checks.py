"""Checks of settings that are texts with a form of their own, or that depend on each other or the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from ditflow.errors import SettingsError
from ditflow.limits import FASTEST, SLOWEST
from ditflow.memory.presets import PRESETS
from ditflow.models.experts import Expert, split_expert
from ditflow.settings.values import Size

if TYPE_CHECKING:
    from ditflow.models.families import ModelFamily
    from ditflow.settings.settings import Settings


def check_together(settings: Settings) -> None:
    """Raises SettingsError for a text that has no such form, and for settings that contradict each other."""
    _check_initial_latents(settings)  # first: it bounds the number of steps
    _check_memory(settings)
    _check_fps(settings)
    _check_blocks(settings)
    _check_gradients(settings)
    _check_estimates(settings)
    _check_reference_noise(settings)
    _check_chosen_motion(settings)
    _check_step_cache(settings)


def check_family(settings: Settings, family: ModelFamily) -> None:
    """Raises SettingsError for values that a model family does not accept."""
    size, multiple = settings.size, family.size_multiple
    if any(side % multiple or not side for side in size):
        nearest = Size(*(max(multiple, round(side / multiple) * multiple) for side in size))
        raise SettingsError(f"size: {size} given, multiples of {multiple} accepted; nearest: {nearest}")
    if settings.frames < family.least_frames:
        raise SettingsError(f"frames: {settings.frames} given, at least {family.least_frames} accepted")
    tiles = ("auto", "none", *family.tiles)
    for name, accepted in (("scheduler", family.schedulers), ("decode_tile", tiles)):
        if (given := getattr(settings, name)) not in accepted:
            raise SettingsError(f"{name}: {given!r} given, accepted: {', '.join(accepted)}")
    if settings.dynamic_scale and not family.has_dynamic_scale:
        raise SettingsError(
            f"dynamic_scale: {family.pipeline} has no dynamic guidance scale; use --no-dynamic-scale"
        )
    if settings.lora and not family.takes_lora:
        raise SettingsError(f"lora: {family.pipeline} does not take LoRAs; leave out --lora")
    _check_experts(settings, family.experts)


def _check_experts(settings: Settings, experts: Sequence[Expert]) -> None:
    """Check what settings say of each of the model's transformers."""
    scales, several = settings.guidance_scale, len(experts) > 1
    if len(scales) not in (1, len(experts)):
        more = f", or {len(experts)}: one for each of the model's transformers, that of most noise first"
        raise SettingsError(
            f"guidance_scale: {list(scales)} given, one number accepted{more if several else ''}"
        )
    for lora in settings.lora:
        name, file = split_expert(lora)
        if name and not several:
            raise SettingsError(f"lora: {lora} given, but this model has one transformer; give {file}")
    names = sorted(name for name, _ in map(split_expert, settings.weights))
    files = [kind for kind in settings.weight_kinds if kind.endswith(".gguf")]
    wanted = sorted(expert.name for expert in experts) if files else [""]
    if names != wanted or len(files) not in (0, len(names)):
        each = " ".join(f"--weights {expert.name}=FILE" for expert in experts)
        last = f"a GGUF file for each transformer, {each}" if several else "a GGUF file"
        raise SettingsError(
            f"weights: {' '.join(settings.weights) or 'none'} given; accepted: full, fp8, int8, nf4 or {last}"
        )


def _check_initial_latents(settings: Settings) -> None:
    given = settings.initial_latents
    if given == "noise":
        return
    strength = re.fullmatch(r"clip:(\d{1,9}(\.\d{1,9})?)", given)
    if not strength or not 0 < float(strength[1]) <= 1:
        raise SettingsError(
            f"initial_latents: {given!r} given; accepted: noise, or clip:STRENGTH with a strength above 0 "
            "and at most 1, such as clip:0.6"
        )
    if not settings.steps_made:
        raise SettingsError(
            f"initial_latents: {given!r} given, which makes none of the {settings.steps} steps; use a higher "
            "strength, or more --steps"
        )


def _check_memory(settings: Settings) -> None:
    if settings.memory not in ("auto", *PRESETS) and not re.fullmatch(r"\d{1,4}(\.\d+)?", settings.memory):
        raise SettingsError(
            f"memory: {settings.memory!r} given; accepted: auto, gigabytes such as 8, or {', '.join(PRESETS)}"
        )


def _check_fps(settings: Settings) -> None:
    if settings.fps == "auto":
        return
    is_number = re.fullmatch(r"\d{1,9}(\.\d{1,9})?|\d{1,9}/0*[1-9]\d{0,8}", settings.fps)
    if not is_number or not SLOWEST <= Fraction(settings.fps) <= FASTEST:
        raise SettingsError(
            f"fps: {settings.fps!r} given; accepted: auto, or from {float(SLOWEST)} to {FASTEST} frames a "
            "second such as 24 or 30000/1001"
        )


def _check_blocks(settings: Settings) -> None:
    for name in ("guidance_blocks", "injection_blocks"):
        blocks = getattr(settings, name)
        if len(set(blocks)) < len(blocks):
            raise SettingsError(f"{name}: {list(blocks)} given; name each block only once")
    overlap = set(settings.guidance_blocks) & set(settings.injection_blocks)
    if overlap and settings.guidance and settings.injection and settings.loss != "x0":
        raise SettingsError(
            f"block {min(overlap)} is both guided and injected, so guidance would see the clip's keys "
            "instead of the new video's; choose different --guidance-blocks and --injection-blocks"
        )


def _check_gradients(settings: Settings) -> None:
    if settings.gradients > settings.optimisation_steps:
        raise SettingsError(
            f"gradients: {settings.gradients} given, at most {settings.optimisation_steps} accepted, the "
            "number of optimisation steps; use --optimisation-steps for more"
        )
    if settings.gradients and settings.gradient_reuse > 1:
        raise SettingsError(
            "--gradients has fewer updates, --gradient-reuse keeps their number: give only one of them"
        )


def _check_estimates(settings: Settings) -> None:
    if not settings.optimises:
        return
    if settings.optimise == "embedding" and settings.estimate_steps:
        flag = "another --loss" if settings.loss == "x0" else "leave out --x0-after"
        raise SettingsError(
            "loss x0 takes the model's prediction as a constant, so it has no gradient to the embedding: "
            f"use --optimise latent, or {flag}"
        )
    if settings.loss == "x0" and settings.x0_after < 1:
        raise SettingsError(
            f"x0_after: {settings.x0_after} given, but the loss is x0 from the first step: "
            "use another --loss, or leave out --x0-after"
        )
    if settings.loss == "x0" and settings.gradient_reuse > 1:
        raise SettingsError(
            "loss x0 has no backward pass to save: leave out --gradient-reuse, or give --gradients"
        )


def _check_reference_noise(settings: Settings) -> None:
    if settings.reference_noise == "clean":
        return
    if not settings.optimises:
        reason = "nothing is optimised towards the clip's motion"
    elif settings.loss == "x0":
        reason = "loss x0 always reads the clip at the noise level of the step"
    else:
        return
    raise SettingsError(f"reference_noise: step given, but {reason}: leave out --reference-noise")


def _check_chosen_motion(settings: Settings) -> None:
    given = settings.chosen_by
    if not given:
        return
    if not settings.has_clip:
        needing = settings.changes_clip_motion
        if settings.starts_from_clip:
            needing.append("initial_latents")
        if settings.reference_noise != "clean":
            needing.append("reference_noise")
        if needing:
            raise SettingsError(
                f"{needing[0]}: it needs a clip, and --motion is given without one; add --video, or leave "
                f"out {_flag(needing[0])}"
            )
    if settings.optimises and (settings.loss != "flow" or settings.estimate_steps):
        loss = settings.loss if settings.loss != "flow" else "x0 (--x0-after)"
        raise SettingsError(
            f"{given[0]}: it sets where each patch goes, and loss {loss} compares features or latents of the "
            f"whole clip instead; use --loss flow --x0-after 1, or leave out {_flag(given[0])}"
        )
    if not settings.masked_by:
        for name in ("mask_invert", "camera_from"):
            if getattr(settings, name):
                raise SettingsError(f"{name}: there is no mask; give --mask FILE or --mask auto")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_step_cache(settings: Settings) -> None:
    if settings.step_cache == "off":
        return
    is_number = re.fullmatch(r"\d{1,9}(\.\d{1,9})?", settings.step_cache)
    if not is_number or not 0 < float(settings.step_cache) <= 1:
        raise SettingsError(
            f"step_cache: {settings.step_cache!r} given; accepted: off, or a share above 0 and at most 1, "
            "such as 0.1"
        )
