"""Every option of a run, with its help text and bounds: the fields of `Settings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ditflow.limits import PROMPT_CHARACTERS, SIDE, SOURCE_FRAMES
from ditflow.memory.presets import PRESETS
from ditflow.models.families import models
from ditflow.settings.speed import SPEEDS
from ditflow.settings.values import Size

ATTENTION = ("sdpa", "cudnn", "flash", "xformers", "sage")  # of ditflow.models.attention, which needs torch
FORWARD_ATTENTION = ("same", "auto", *ATTENTION)


def option(
    group: str,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    flag: bool = True,
    spelling: str | None = None,
) -> Any:
    """A field of `Settings`. None means unset: the model's or the speed's value from `configs/` is then used.

    `least` and `most` bound a number, each number in a list, or the length of a text in characters.
    `flag`: whether the command line has a flag for it. `spelling`: another name that is accepted for it.
    """
    metadata = {"group": group, "text": text, "choices": choices, "least": least, "most": most}
    return field(default=None, metadata=metadata | {"flag": flag, "spelling": spelling})


@dataclass(frozen=True)
class Options:
    """None stands for the value that `Settings` takes from `configs/`."""

    video: str = option("video", "reference clip: a video file or a folder of images")
    frames: int = option("video", "number of frames to use", least=1, most=SOURCE_FRAMES)
    start: int = option("video", "first frame of the clip to use, from 0", least=0, most=SOURCE_FRAMES)
    stride: int = option("video", "use every n-th frame of the clip", least=1, most=SOURCE_FRAMES)
    fps: str = option(
        "video", "frames a second to resample the clip to, before start and stride; auto: its own mean"
    )
    size: Size = option("video", "size of the new video in pixels (multiples of 16)", most=SIDE)
    fit: str = option("video", "how to fit the clip to that size", choices=("crop", "pad", "stretch"))

    model: str = option("model", f"{', '.join(models())}, a hub id or a local folder")
    lora: tuple[str, ...] = option(
        "model",
        "LoRA weights to add, FILE_OR_ID[:scale]; can be repeated. For one of two transformers: "
        "high=FILE_OR_ID[:scale], that of more noise, or low=...",
    )
    dtype: str = option("model", "precision of the weights", choices=("bfloat16", "float16", "float32"))
    device: str = option("model", "device to compute on: auto, cpu, cuda, cuda:1, ...")
    deterministic: bool = option("model", "reproduce results bit for bit on a GPU too (slower)")

    memory: str = option("memory", "GPU memory to use: auto, gigabytes (8) or a preset by name (8gb)")
    preset: str = option("memory", "memory preset that the run used", choices=("auto", *PRESETS), flag=False)
    weights: tuple[str, ...] = option(
        "memory",
        "transformer weights: full (exact), or rounded: fp8, int8, nf4 or a .gguf file; for two transformers "
        "--weights high=FILE --weights low=FILE, the first of more noise",
    )
    decode_tile: str = option("memory", "tile size of VAE decoding: WIDTHxHEIGHT, none or auto", flag=False)

    speed: str = option(
        "speed",
        "exact, or less work for nearly the same motion (fast) or similar motion (faster): sets the options "
        "below that are not exact, each of which can still be given",
        choices=SPEEDS,
    )
    attention: str = option("speed", "attention kernel", choices=ATTENTION)
    attention_forward: str = option(
        "speed",
        "attention kernel of forwards without gradient; same: as --attention; auto: cudnn on GPUs of compute "
        "capability 9.0 or later, else sdpa",
        choices=FORWARD_ATTENTION,
    )
    compute: str = option(
        "speed",
        "products of the blocks: bf16 (exact, in --dtype); in 8 bits: int8, int8-forward (not gradients); "
        "fp16-sums: those of float16 are added in float16, on a GPU",
        choices=("bf16", "int8", "int8-forward", "fp16-sums"),
    )
    compile: str = option(
        "speed", "compile the transformer's blocks; auto: only on a GPU", choices=("auto", "on", "off")
    )
    engine: str = option("speed", "engine for forwards that need no gradient", choices=("torch", "tensorrt"))

    gradients: int = option(
        "speed",
        "gradients in each guided step, at a learning rate with which the updates' total stays; 0: one for "
        "each optimisation step",
        least=0,
        most=1000,
    )
    gradient_reuse: int = option("speed", "updates that each gradient is used for", least=1, most=1000)
    negative: str = option(
        "speed",
        "negative prompt after the guided steps: in every step, or alternate (between: the last difference)",
        choices=("every", "alternate"),
    )
    negative_below: float = option(
        "speed",
        "after the guided steps, no negative prompt where the guidance scale is below this; 1: nowhere",
        least=1,
        most=101,
    )
    step_cache: str = option(
        "speed",
        "after the guided steps, reuse what all blocks but the first did if the first changed by less than "
        "this share, such as 0.1; off",
    )

    prompt: str = option("text", "what the new video should show", most=PROMPT_CHARACTERS)
    negative_prompt: str = option("text", "what it should not show", most=PROMPT_CHARACTERS)
    source_prompt: str = option(
        "text", "what the clip shows; used when its motion is read", most=PROMPT_CHARACTERS
    )

    guidance: bool = option("motion", "optimise towards the clip's motion")
    loss: str = option(
        "motion",
        "what to match: a motion feature, or x0, the estimate of the clean latents, without a backward pass",
        choices=("flow", "moft", "smm", "smm-release", "x0"),
    )
    x0_after: float = option(
        "motion",
        "share of the guided steps after which the loss is x0, such as 0.5; 1: never",
        least=1e-3,
        most=1,
    )
    optimise: str = option(
        "motion",
        "what to optimise: the latents or the positional embedding",
        choices=("latent", "embedding"),
        spelling="optimize",
    )
    guided: float = option(
        "motion", "share of the denoising steps made, from the first, that are guided", least=0, most=1
    )
    optimisation_steps: int = option(
        "motion",
        "optimisation steps in each guided step",
        least=1,
        most=1000,
        spelling="optimization_steps",
    )
    learning_rate: tuple[float, float] = option(
        "motion", "learning rate; falls from HIGH to LOW over the guided steps", least=0, most=1e30
    )
    guidance_blocks: tuple[int, ...] = option(
        "motion", "transformer blocks in which motion is matched", least=0, most=999
    )
    temperature: float = option(
        "motion", "factor in the motion flow's softmax; higher is sharper", least=1e-3, most=1e4
    )
    rows: str = option(
        "motion", "patches in the flow loss: those that move in the clip, or all", choices=("moving", "all")
    )
    reference: str = option(
        "motion", "the clip's motion flow: hard (likeliest position) or soft (mean)", choices=("hard", "soft")
    )
    reference_noise: str = option(
        "motion",
        "the clip that motion is read from: clean, or noised to the level of each guided step (step)",
        choices=("clean", "step"),
    )
    moft_channels: float = option(
        "motion", "share of the channels that the moft loss compares", least=0, most=1
    )
    saved_embedding: str = option("motion", "embedding file to use instead of optimising", flag=False)
    injection: bool = option("motion", "inject the clip's keys and values in the guided steps")
    injection_blocks: tuple[int, ...] = option(
        "motion", "transformer blocks to inject them into", least=0, most=999
    )

    mask: str = option(
        "target",
        "part of the clip whose motion counts: a video, a folder or an image of the first frame, white where "
        "it counts; auto: what moves against the camera",
    )
    mask_invert: bool = option("target", "what the mask does not cover counts instead")
    transfer: str = option(
        "target",
        "motion of the clip to transfer: all, that of objects (as --mask auto), or the camera's, for the "
        "whole frame",
        choices=("all", "object", "camera"),
    )
    camera_from: str = option("target", "second clip, whose camera motion counts where the mask does not")
    motion_scale: float = option(
        "target", "factor on the clip's motion, such as 0.5 (weaker) or 2 (stronger)", least=0, most=100
    )
    flip: str = option("target", "mirror the clip's motion", choices=("none", "horizontal", "vertical"))
    reverse_motion: bool = option("target", "play the clip's motion backwards")
    motion_shift: tuple[float, float] = option(
        "target",
        "move the clip's motion to another place: shares of the width to the right and of the height down",
        least=-1,
        most=1,
    )
    motion: str = option(
        "target",
        "YAML file of a drawn motion (docs/choosing-motion.md), instead of a clip or on top of one",
    )

    steps: int = option("sampling", "denoising steps", least=1, most=1000)
    initial_latents: str = option(
        "sampling",
        "what denoising starts from: noise, or clip:STRENGTH, such as clip:0.6: the noised clip, with only "
        "the last 0.6 of the steps",
    )
    guidance_scale: tuple[float, ...] = option(
        "sampling",
        "classifier-free guidance scale; 1 turns it off. Two for a model with two transformers: that of more "
        "noise first",
        least=1,
        most=100,
    )
    dynamic_scale: bool = option(
        "sampling", "let the guidance scale rise over the steps (CogVideoX-5B's default)"
    )
    scheduler: str = option("sampling", "sampler (CogVideoX: ddim or dpm; Wan: unipc or euler)")
    seed: int = option("sampling", "seed of all noise", least=0, most=2**63 - 1)

    output: str = option(
        "output", "run folder (default: runs/<clip>-<prompt>); a number is added if the name is taken"
    )
    format: str = option("output", "format of the videos to write", choices=("mp4", "gif", "frames"))
    keep_precision: bool = option("output", "save the embedding in float32 instead of bfloat16")
