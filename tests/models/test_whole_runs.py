"""Runs without guidance and injection equal those of diffusers' own pipelines, after every step."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
)
from tiny_pipelines import build_pipeline, quick_settings
from tiny_wan_pipelines import KINDS, write_wan

import ditflow
from ditflow.models.loading import ModelFolder
from ditflow.sampling import denoising

STEPS = 6
NEGATIVE = "a blue square"


@pytest.fixture
def latents_after_each_step(monkeypatch):
    """Those of the runs that follow, [1, frames, channels, height, width] each."""
    found, on_step = [], denoising.Denoising._on_step

    def watched(self, step):
        found.append(step.latents.clone())
        on_step(self, step)

    monkeypatch.setattr(denoising.Denoising, "_on_step", watched)
    return found


def plain_settings(clip, model, tmp_path, **changes):
    settings = quick_settings(clip, model, output=str(tmp_path / "run"), frames=9, steps=STEPS)
    plain = {"guidance": False, "injection": False, "negative_prompt": NEGATIVE, "guidance_scale": 4}
    return replace(settings, **plain | {"dynamic_scale": False} | changes)


def latents_of_pipeline(pipeline, settings, **options):
    """The latents of diffusers' pipeline after each step of a run with the same settings and seed."""
    pipeline.set_progress_bar_config(disable=True)
    found = []

    def on_step(pipeline, index, timestep, given):
        found.append(given["latents"].clone())
        return {}

    pipeline(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.size.width,
        height=settings.size.height,
        num_frames=settings.frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.scale_of(0),
        generator=torch.Generator().manual_seed(settings.seed),
        callback_on_step_end=on_step,
        output_type="latent",
        **options,
    )
    return found


def assert_equal(found, expected):
    assert len(found) == len(expected) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert (found[-1] - found[0]).norm() > 0.1 * found[0].norm()


@pytest.mark.parametrize("scheduler", ["unipc", "euler"])
@pytest.mark.parametrize("kind, scales", [*((kind, [4]) for kind in KINDS), ("wan-a14b", [4, 3])], ids=str)
def test_wan(clip, tmp_path, latents_after_each_step, kind, scales, scheduler):
    write_wan(tmp_path / "model", kind)
    changes = {"scheduler": scheduler, "guidance_scale": scales}
    settings = plain_settings(clip, tmp_path / "model", tmp_path, **changes)
    ditflow.transfer(settings)
    pipeline = WanPipeline.from_pretrained(tmp_path / "model")
    if scheduler == "euler":
        shift = pipeline.scheduler.config.flow_shift
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    second = {"guidance_scale_2": scales[1]} if len(scales) > 1 else {}
    expected = latents_of_pipeline(pipeline, settings, **second)
    assert_equal(latents_after_each_step, [latents.transpose(1, 2) for latents in expected])


@pytest.mark.parametrize("dynamic", [False, True], ids=["constant-scale", "dynamic-scale"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize("positional", ["rope", "sincos"])
def test_cogvideox(clip, tmp_path, latents_after_each_step, positional, scheduler, dynamic):
    build_pipeline(tmp_path / "model", positional=positional)
    changes = {"scheduler": scheduler, "dynamic_scale": dynamic}
    settings = plain_settings(clip, tmp_path / "model", tmp_path, **changes)
    ditflow.transfer(settings)
    pipeline = CogVideoXPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    kind = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[scheduler]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    length = ModelFolder(str(tmp_path / "model"), "float32", torch.device("cpu")).config("transformer")
    options = {"use_dynamic_cfg": dynamic, "max_sequence_length": length["max_text_seq_length"]}
    assert_equal(latents_after_each_step, latents_of_pipeline(pipeline, settings, **options))
