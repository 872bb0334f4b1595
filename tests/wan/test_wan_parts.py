"""Wan's schedule, text encoder and autoencoder by themselves, against the libraries that they use."""

import logging

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from tiny_wan_pipelines import PATCHED_VAE, VAE, scheduler, write_wan

from ditflow.memory.placement import outside
from ditflow.memory.streamed import Streamed
from ditflow.models.wan.family import WanFamily
from ditflow.models.wan.frames import encoded_frames, latent_spans
from ditflow.models.wan.schedule import SCHEDULERS, WanSchedule
from ditflow.models.wan.text import UMT5TextEncoder, tokenise
from ditflow.models.wan.vae import STRIDES, WanAutoencoder

CPU = torch.device("cpu")
FAMILY = WanFamily()
SHAPE = (1, 3, 4, 6, 8)
UNIPC = dict(scheduler().config)


def schedule(kind="unipc", steps=6, config=UNIPC, seed=0, size=(832, 480)):
    return WanSchedule(kind, config, steps, size, CPU, torch.Generator().manual_seed(seed))


def diffusers_scheduler(kind, steps):
    found = scheduler() if kind == "unipc" else FlowMatchEulerDiscreteScheduler(shift=3.0)
    found.set_timesteps(steps)
    found.set_begin_index(0)
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_steps_are_those_of_diffusers(kind, steps):
    ours, theirs = schedule(kind, steps), diffusers_scheduler(kind, steps)
    assert ours.timesteps == pytest.approx(theirs.timesteps.tolist())
    latents = ours.initial_noise(SHAPE)
    expected = latents.transpose(1, 2)
    for index, timestep in enumerate(theirs.timesteps):
        prediction = torch.randn(SHAPE)
        latents = ours.step(prediction, index, latents)
        expected = theirs.step(prediction.transpose(1, 2), timestep, expected, return_dict=False)[0]
        torch.testing.assert_close(latents, expected.transpose(1, 2), rtol=1e-6, atol=1e-6)


def test_noise_of_a_seed_is_that_of_the_pipeline():
    noise = torch.randn(1, 4, 3, 6, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(schedule(seed=5).initial_noise(SHAPE), noise.transpose(1, 2))


def test_either_scheduler_runs_a_model_of_the_other():
    euler = dict(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    assert schedule("unipc", config=euler).timesteps == schedule("unipc").timesteps
    assert schedule("euler", config=UNIPC).timesteps == schedule("euler", config=euler).timesteps


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize(
    "size, own, shift",
    [((832, 480), 3.0, 3.0), ((1280, 720), 3.0, 5.0), ((704, 1280), 3.0, 5.0), ((1280, 720), 8.0, 8.0)],
    ids=str,
)
def test_large_videos_have_the_published_shift(kind, size, own, shift):
    found = schedule(kind, config=UNIPC | {"flow_shift": own}, size=size)
    assert found.timesteps == schedule(kind, config=UNIPC | {"flow_shift": shift}).timesteps


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_true_velocity_leads_to_the_clean_latents(kind):
    run, clean = schedule(kind), torch.randn(SHAPE)
    latents = run.initial_noise(SHAPE)
    for index in range(6):
        velocity = (latents - clean) / run.scheduler.sigmas[index]
        latents = run.step(velocity, index, latents)
    torch.testing.assert_close(latents, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_noise_and_estimates_have_the_level_of_the_timestep(kind):
    run, clean, noise = schedule(kind), torch.randn(SHAPE), torch.randn(SHAPE)
    for index in range(6):
        timestep, level = run.on_device[index : index + 1], float(run.scheduler.sigmas[index])
        noised = run.add_noise(clean, noise, timestep)
        torch.testing.assert_close(noised, (1 - level) * clean + level * noise)
        estimate = run.estimate_clean(noise - clean, noised, timestep)
        torch.testing.assert_close(estimate, clean, rtol=1e-5, atol=1e-5)
    assert torch.equal(run.add_noise(clean, noise, torch.zeros(1)), clean)
    between = run.add_noise(torch.zeros(SHAPE), torch.ones(SHAPE), torch.tensor([123.0]))
    torch.testing.assert_close(between, torch.full(SHAPE, 0.123))


HISTORY = ("generator", "clean_estimate_0", "clean_estimate_1", "last_sample", "orders")


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("lost", [None, *HISTORY])
def test_a_schedule_goes_on_from_its_state(kind, lost):
    """Bit for bit; and each part of the state matters: with one of an earlier step, the rest differs."""
    run = schedule(kind, steps=8)
    latents, states = run.initial_noise(SHAPE), []
    for index in range(4):
        latents = run.step(torch.randn(SHAPE), index, latents)
        states.append({name: tensor.clone() for name, tensor in run.state().items()})
    assert set(states[-1]) == (set(HISTORY) if kind == "unipc" else {"generator"})
    predictions = [torch.randn(SHAPE) for _ in range(4)]

    def rest(schedule):
        found = latents
        for index, prediction in enumerate(predictions, 4):
            found = schedule.step(prediction, index, found)
        return found

    expected = rest(run)
    other = schedule(kind, steps=8)
    earlier = next((state for state in states if lost in state), {})
    other.restore(states[-1] | {name: tensor for name, tensor in earlier.items() if name == lost})
    same = torch.equal(rest(other), expected)
    assert same == (lost in (None, "generator") or kind == "euler")  # steps draw no noise


def test_a_state_is_not_changed_by_later_steps_and_restores_twice():
    run = schedule()
    latents = run.step(torch.randn(SHAPE), 0, run.initial_noise(SHAPE))
    state, prediction = run.state(), torch.randn(SHAPE)
    copy = {name: tensor.clone() for name, tensor in state.items()}
    first = run.step(prediction, 1, latents)
    run.step(prediction, 2, first)
    assert all(torch.equal(state[name], copy[name]) for name in copy)
    run.restore(state)
    assert torch.equal(run.step(prediction, 1, latents), first)
    run.restore(schedule().state())
    assert run.scheduler.last_sample is None and "orders" not in run.state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("models") / "wan"
    write_wan(found)
    return found


@pytest.fixture
def pipeline(folder):
    return WanPipeline.from_pretrained(folder)


PROMPTS = ["a red circle", " a  blue\nsquare &amp;amp; a red circle", ""]


def test_texts_are_encoded_as_by_the_pipeline(pipeline):
    expected = pipeline._get_t5_prompt_embeds(PROMPTS, max_sequence_length=512)
    tokens = tokenise(pipeline.tokenizer, PROMPTS, 512)
    encoder = UMT5TextEncoder(pipeline.text_encoder)
    found = encoder.encode(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    lengths = (expected != 0).any(-1).sum(1)
    assert len(set(lengths.tolist())) == 3 and (found != 0).any(-1).sum(1).tolist() == lengths.tolist()
    one = encoder.encode(tokens[:1])
    torch.testing.assert_close(one, found[:1], rtol=1e-5, atol=1e-5)
    assert torch.equal(encoder.encode(tokens, Streamed(encoder.layers, CPU, 0)), found)


def test_the_token_table_stays_on_the_host(pipeline):
    """It is not among the tensors that are placed on the device, resident or streamed."""
    encoder = UMT5TextEncoder(pipeline.text_encoder)
    placed = {tensor.data_ptr() for tensor in encoder.network.parameters()}
    placed |= {tensor.data_ptr() for tensor in outside(encoder.network, encoder.layers)}
    assert encoder.network.final_layer_norm.weight.data_ptr() in placed
    assert encoder.table.weight.data_ptr() not in placed


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(pipeline, caplog):
    caplog.set_level(logging.WARNING)
    tokens = tokenise(pipeline.tokenizer, ["a red circle", "a red circle " * 300], 512)
    assert tokens.shape == (2, 512) and "longer than the model's 512 tokens" in caplog.text


@pytest.fixture(params=[VAE, PATCHED_VAE], ids=["wan-2.1", "wan-2.2-5b"])
def vae(request):
    torch.manual_seed(0)
    return AutoencoderKLWan(**request.param).eval()


@pytest.mark.parametrize("frames", [5, 6, 8, 9])
def test_latents_are_those_of_diffusers_normalised(vae, frames):
    autoencoder = WanAutoencoder(vae)
    pixels = torch.randint(256, (frames, 32, 48, 3), dtype=torch.uint8)
    latents = autoencoder.encode(pixels)
    assert latents.shape == FAMILY.latent_shape(frames, (48, 32), vae.config)
    padded = torch.cat([pixels, pixels[-1:].expand(encoded_frames(frames) - frames, -1, -1, -1)])
    with torch.no_grad():
        mode = vae.encode(padded.permute(3, 0, 1, 2)[None] / 127.5 - 1).latent_dist.mode()
    mean, std = (
        torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std")
    )
    torch.testing.assert_close(latents, ((mode - mean) / std).transpose(1, 2), rtol=1e-5, atol=1e-5)

    decoded = autoencoder.decode(latents, frames, "none")
    with torch.no_grad():
        video = vae.decode(latents.transpose(1, 2) * std + mean).sample
    expected = ((video[0, :, :frames].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert decoded.shape == pixels.shape and (decoded.int() - expected.int()).abs().max() <= 1
    assert decoded.float().std() > 1


@pytest.mark.parametrize("frames", range(5, 11))
def test_spans_are_the_frames_that_a_latent_frame_is_computed_from(frames):
    """Causal: a change of a frame reaches its own latent frame and later ones."""
    torch.manual_seed(0)
    autoencoder = WanAutoencoder(AutoencoderKLWan(**VAE).double())
    pixels = torch.randint(256, (frames, 8, 8, 3), dtype=torch.uint8)
    latents, spans = autoencoder.encode(pixels), latent_spans(frames)
    assert [index for span in spans for index in span] == list(range(encoded_frames(frames)))
    for index, span in enumerate(spans):
        changed = pixels.clone()
        changed[span.start] = 255 - changed[span.start]
        moved = (autoencoder.encode(changed) != latents).flatten(2).any(-1)[0].tolist()
        assert moved.index(True) == index


@pytest.mark.parametrize("tile", FAMILY.tiles)
def test_tiles_join_to_the_size_of_the_whole(vae, tile):
    """And are the whole, but near the seams."""
    assert tuple(STRIDES) == FAMILY.tiles
    width, height = (int(side) for side in tile.split("x"))
    side = vae.config.scale_factor_spatial
    autoencoder = WanAutoencoder(vae)
    latents = torch.randn(1, 1, vae.config.z_dim, height // side + 6, width // side + 4)
    whole, tiled = (autoencoder.decode(latents, 1, each) for each in ("none", tile))
    assert tiled.shape == whole.shape == (1, height + 6 * side, width + 4 * side, 3)
    inside = STRIDES[tile] - 4 * side
    difference = (tiled.int() - whole.int()).abs()[:, :inside, :inside]
    assert difference.float().mean() < 1


def test_a_step_of_diffusers_unipc_changes_nothing_else():
    """What it keeps is in the state, apart from the step's number; its list of timesteps is not read."""
    run = schedule()
    before = dict(vars(run.scheduler))
    run.step(torch.randn(SHAPE), 0, run.initial_noise(SHAPE))
    changed = {name for name, value in vars(run.scheduler).items() if value is not before.get(name)}
    assert isinstance(run.scheduler, UniPCMultistepScheduler)
    assert changed == {"_step_index", "last_sample", "this_order", "lower_order_nums"}
