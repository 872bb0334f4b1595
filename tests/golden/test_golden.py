"""The released code's numbers, reproduced by the functions that the command uses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from einops import rearrange
from repository import ALL_GOLDEN, GOLDEN
from safetensors import safe_open
from tiny_models import backbone_of, settings_schedule, text_embeddings

from ditflow.guidance.targets import prepare_guidance
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.run_folder.embeddings import FILE, embedding_facts, read_embeddings, save_embeddings
from ditflow.run_folder.run import Run
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings
from ditflow_kernels import motion_flow, motion_flow_loss

KINDS = ("amf", "guided")
BACKENDS = ("reference", "chunked")
TOLERANCE = 1e-4
SOFT_TOLERANCE = 1e-5


def discovered(kind):
    """Every golden file of a kind: those in the repository and, if present, the whole set."""
    found = [(f"own/{path.stem}", path) for path in sorted((GOLDEN / kind).glob("*"))]
    found += [(path.stem, path) for path in sorted((ALL_GOLDEN / kind).glob("*"))]
    return [pytest.param(path, id=name) for name, path in found]


def read(path):
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12)).item()


def test_whole_set_is_known():
    """Fails on a golden file that no test below checks."""
    if not ALL_GOLDEN.is_dir():
        pytest.skip(
            f"{ALL_GOLDEN} is absent: only the repository's golden files are checked (see DITFLOW_GOLDEN)"
        )
    known = {"README.md", "transformer-2b", "transformer-5b", *KINDS}
    assert {path.name for path in ALL_GOLDEN.iterdir()} <= known
    for kind in KINDS:
        paths = list((ALL_GOLDEN / kind).iterdir())
        assert paths
        assert all(path.suffix == ".safetensors" for path in paths)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", discovered("amf"))
def test_amf(path, backend):
    tensors, shape = read(path)
    grid = (shape["frames"], shape["height"], shape["width"])

    def pairs(flow):
        return rearrange(flow, "(q k) n c -> q k n c", q=grid[0])

    def tokens(name):
        return rearrange(tensors[name], "m s d -> s m d").contiguous()

    query, key = tokens("query").requires_grad_(), tokens("key").requires_grad_()
    hard = motion_flow(query, key, grid, shape["temperature"], hard=True, backend=backend)
    assert torch.equal(hard, pairs(tensors["hard_flow"]))
    soft = motion_flow(query, key, grid, shape["temperature"], backend=backend)
    assert (soft - pairs(tensors["soft_flow"])).abs().max() < 2e-6 * max(grid)  # of the largest coordinate

    for name, rows in (("masked", "moving"), ("unmasked", "all")):
        reference = pairs(tensors["reference_flow"])
        loss = motion_flow_loss(query, key, reference, grid, shape["temperature"], rows=rows, backend=backend)
        assert relative(loss, tensors[f"loss_{name}"]) < 1e-5
        gradients = torch.autograd.grad(loss, (query, key))
        assert relative(gradients[0], tokens(f"grad_query_{name}")) < 1e-5
        assert relative(gradients[1], tokens(f"grad_key_{name}")) < 1e-5


def golden_settings(metadata):
    """The settings of a golden run, under our names."""
    losses = {"smm": "smm-release"}
    return Settings(
        model=metadata["backbone"],
        prompt="golden",
        dtype="float32",
        device="cpu",
        loss=losses.get(metadata["loss"], metadata["loss"]),
        optimise="latent" if metadata["optimize"] == "latent" else "embedding",
        guidance=bool(metadata["guidance_blocks"]),
        guidance_blocks=metadata["guidance_blocks"],
        injection=bool(metadata["injection_blocks"]),
        injection_blocks=metadata["injection_blocks"],
        guided=metadata["guided_steps"] / metadata["num_inference_steps"],
        steps=metadata["num_inference_steps"],
        optimisation_steps=metadata["optimization_steps"],
        learning_rate=metadata["lr"],
        temperature=metadata["temperature"],
        rows="moving" if metadata["threshold"] else "all",
        reference="hard" if metadata["hard_reference"] else "soft",
        moft_channels=metadata["moft_channel_fraction"],
        guidance_scale=metadata["guidance_scale"],
        scheduler="ddim" if metadata["backbone"] == "2b" else "dpm",
        keep_precision=True,
        dynamic_scale=metadata["dynamic_cfg"],
        seed=metadata["seed"],
    )


def load_backbone(name):
    """The golden model. The released code's rotary grid covers 720x480 pixels, whatever the config says."""
    folder = GOLDEN / f"transformer-{name}"
    return backbone_of(
        CogVideoXTransformer3DModel.from_pretrained(
            folder if folder.is_dir() else ALL_GOLDEN / folder.name, sample_width=90, sample_height=60
        )
    )


def run(settings, tensors, kind=PlainRunner, prompt="prompt_embeds"):
    """Repeat a golden run; returns its result and the latents after each denoising step."""
    backbone = load_backbone(settings.model)
    texts = text_embeddings(tensors[prompt], tensors["negative_embeds"], tensors["source_embeds"])
    seen = []
    schedule = settings_schedule(settings)
    saved = None
    if settings.saved_embedding:
        facts = embedding_facts(settings, schedule.timesteps, backbone.embedding_kind)
        saved = read_embeddings(Path(settings.saved_embedding), facts, settings.guided_steps)
    denoising = Denoising(
        settings, schedule, texts, tensors["motion_latent"], seen.append, saved_embeddings=saved
    )
    denoised = denoising.run(kind(backbone))
    return denoised, [step.latents for step in seen]


@pytest.mark.parametrize("kind", [PlainRunner, BlockwiseRunner])
@pytest.mark.parametrize("path", discovered("guided"))
def test_guided(path, kind, tmp_path):
    tensors, metadata = read(path)
    settings = golden_settings(metadata)
    denoised, latents = run(settings, tensors, kind)
    assert len(latents) == len(tensors["denoised_latents"])
    for step, expected in zip(latents, tensors["denoised_latents"], strict=True):
        assert relative(step, expected) < TOLERANCE
    assert relative(denoised.latents, tensors["final_latents"]) < TOLERANCE
    assert len(denoised.losses) == ("losses" in tensors) * settings.guided_steps
    if "losses" in tensors:
        assert relative(torch.tensor(denoised.losses).flatten(), tensors["losses"]) < TOLERANCE

    if "inject_final_latents" in tensors:
        timesteps = settings_schedule(settings).timesteps
        facts = embedding_facts(settings, timesteps, load_backbone(settings.model).embedding_kind)
        save_embeddings(Run(tmp_path), denoised.embeddings, facts)
        reuse = replace(settings, saved_embedding=str(tmp_path / FILE))
        injected, _ = run(reuse, tensors, kind, "inject_prompt_embeds")
        assert not injected.losses
        assert relative(injected.latents, tensors["inject_final_latents"]) < TOLERANCE


@pytest.mark.parametrize("path", discovered("guided"))
def test_reference_flow(path):
    """The clip's motion flow, captured before the first step. Hard flow is exact, soft flow a mean."""
    tensors, metadata = read(path)
    expected = {int(name.rpartition("_")[2]): name for name in tensors if name.startswith("reference_flow_")}
    settings = golden_settings(metadata)
    if settings.loss != "flow" or not settings.guidance:
        assert not expected
        return
    runner = PlainRunner(load_backbone(settings.model))
    grid = runner.transformer.grid(tensors["motion_latent"])
    guidance = prepare_guidance(
        runner,
        settings,
        grid,
        tensors["motion_latent"],
        tensors["source_embeds"],
        runner.transformer.embedding(grid),
    )
    assert set(guidance.loss.targets) == set(expected)
    for block, name in expected.items():
        found = guidance.loss.targets[block].flatten(0, 1)
        if settings.reference == "hard":
            assert torch.equal(found, tensors[name])
        else:
            assert relative(found, tensors[name]) < SOFT_TOLERANCE
