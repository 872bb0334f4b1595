"""Runs without guidance and injection equal those of diffusers' own pipelines, after every step."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXVideoToVideoPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from tiny_pipelines import build_pipeline, quick_settings
from tiny_wan_pipelines import KINDS, write_wan

import ditflow
from ditflow.models.loading import ModelFolder
from ditflow.sampling import denoising
from ditflow.video import read_clip

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
        num_inference_steps=settings.steps,
        guidance_scale=settings.scale_of(0),
        generator=torch.Generator().manual_seed(settings.seed),
        callback_on_step_end=on_step,
        output_type="latent",
        **options,
    )
    return found


def assert_equal(found, expected, steps=STEPS):
    assert len(found) == len(expected) == steps
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
    give_scheduler(pipeline, scheduler)
    second = {"guidance_scale_2": scales[1]} if len(scales) > 1 else {}
    expected = latents_of_pipeline(pipeline, settings, num_frames=settings.frames, **second)
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
    give_scheduler(pipeline, scheduler)
    options = {"use_dynamic_cfg": dynamic, "max_sequence_length": text_length(tmp_path / "model")}
    expected = latents_of_pipeline(pipeline, settings, num_frames=settings.frames, **options)
    assert_equal(latents_after_each_step, expected)


@pytest.mark.parametrize("scheduler", ["unipc", "euler"])
@pytest.mark.parametrize(
    "kind, strength, made",
    [("wan-1.3b", 0.6, 3), ("wan-1.3b", 1, 6), ("wan-14b", 0.6, 3), ("wan-a14b", 0.6, 3)],
)
def test_wan_from_the_clip(
    clip, tmp_path, latents_after_each_step, monkeypatch, kind, scheduler, strength, made
):
    """diffusers' pipeline has one transformer: of two, it gets the second, which has all steps at 0.6."""
    # it needs ftfy, which mends texts: nothing is wrong with these
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan_video2video.basic_clean", str.strip)
    write_wan(tmp_path / "model", kind)
    changes = {"scheduler": scheduler, "initial_latents": f"clip:{strength}"}
    settings = plain_settings(clip, tmp_path / "model", tmp_path, **changes)
    ditflow.transfer(settings)
    pipeline = WanVideoToVideoPipeline.from_pretrained(tmp_path / "model")
    if kind == "wan-a14b":
        pipeline.transformer = WanTransformer3DModel.from_pretrained(tmp_path / "model" / "transformer_2")
    give_scheduler(pipeline, scheduler)
    expected = latents_of_pipeline(pipeline, settings, video=frames_of(settings), strength=strength)
    assert_equal(latents_after_each_step, [latents.transpose(1, 2) for latents in expected], made)


@pytest.mark.parametrize("strength, made", [(0.6, 3), (1, 6)])
@pytest.mark.parametrize("dynamic", [False, True], ids=["constant-scale", "dynamic-scale"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_cogvideox_from_the_clip(
    clip, tmp_path, latents_after_each_step, monkeypatch, scheduler, dynamic, strength, made
):
    """diffusers takes a sample of the encoded clip; here it takes the mean, as this project does."""
    build_pipeline(tmp_path / "model")
    changes = {"scheduler": scheduler, "dynamic_scale": dynamic, "initial_latents": f"clip:{strength}"}
    settings = plain_settings(clip, tmp_path / "model", tmp_path, **changes)
    ditflow.transfer(settings)
    pipeline = CogVideoXVideoToVideoPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    give_scheduler(pipeline, scheduler)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: self.mean)
    options = {"use_dynamic_cfg": dynamic, "max_sequence_length": text_length(tmp_path / "model")}
    options |= {"video": frames_of(settings), "strength": strength}
    assert_equal(latents_after_each_step, latents_of_pipeline(pipeline, settings, **options), made)


def give_scheduler(pipeline, name):
    config = pipeline.scheduler.config
    if name == "euler":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=config.flow_shift)
    elif name != "unipc":
        kind = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[name]
        pipeline.scheduler = kind.from_config(config, timestep_spacing="trailing")


def text_length(model):
    config = ModelFolder(str(model), "float32", torch.device("cpu")).config("transformer")
    return config["max_text_seq_length"]


def frames_of(settings):
    """The clip's frames, as a run with these settings reads them."""
    found = read_clip(settings.video, frames=settings.frames, size=settings.size)
    return [Image.fromarray(frame) for frame in found.frames]
