"""The toy's parts by themselves: each implements its protocol, and all of its inputs matter."""

from dataclasses import replace

import pytest
import torch

from ditflow.memory.plain import PlainRunner
from ditflow.memory.streamed import Streamed
from toy_family.autoencoder import TILES, ToyAutoencoder, ToyVAE, encoded_frames
from toy_family.family import ToyFamily
from toy_family.pipeline import randomised
from toy_family.schedule import SCHEDULERS, ToySchedule
from toy_family.text import PAD, ByteTokenizer, ToyTextConfig, ToyTextEncoder, ToyTextModel
from toy_family.toy_models import random_inputs, toy_transformer

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forward_is_the_networks_own(dtype):
    transformer = toy_transformer().network.to(dtype)
    transformer = ToyFamily().transformer(transformer, "sdpa", False)
    inputs = random_inputs(transformer)
    (found,) = PlainRunner(transformer).forward([inputs], {})
    expected = transformer.network(inputs.latents.to(dtype), inputs.prompt.to(dtype), inputs.timestep)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"latents": lambda value: value.roll(1, dims=1)},
        {"prompt": lambda value: -value},
        {"timestep": lambda value: value + 1},
        {"embedding": lambda value: value.roll(1, dims=2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_input_changes_the_prediction(change):
    transformer = toy_transformer()
    inputs, runner = random_inputs(transformer), PlainRunner(transformer)
    changed = replace(inputs, **{name: of(getattr(inputs, name)) for name, of in change.items()})
    first, second = runner.forward([inputs, changed], {})
    assert (first - second).norm() > 1e-3 * first.norm()


def test_compiled_pieces_compute_the_same():
    transformer = toy_transformer()
    inputs, runner = random_inputs(transformer), PlainRunner(transformer)
    (expected,) = runner.forward([inputs], {})
    transformer.compile_pieces("aot_eager")
    torch.testing.assert_close(runner.forward([inputs], {})[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tile", TILES)
def test_tiles_join_to_the_whole(tile):
    autoencoder = ToyAutoencoder(
        randomised(ToyVAE()).double()
    )  # float32 would round a few pixels the other way
    latents = torch.randn(1, 3, 6, 14, 18)
    whole = autoencoder.decode(latents, 9)
    assert torch.equal(autoencoder.decode(latents, 9, tile), whole)
    assert whole.float().std() > 10


@pytest.mark.parametrize("frames", range(5, 11))
def test_latent_shape_is_what_encoding_gives(frames):
    autoencoder, family = ToyAutoencoder(randomised(ToyVAE())), ToyFamily()
    pixels = torch.randint(256, (frames, 16, 24, 3), dtype=torch.uint8)
    latents = autoencoder.encode(pixels)
    assert latents.shape == family.latent_shape(frames, (24, 16), autoencoder.network.config)
    assert autoencoder.decode(latents, frames).shape == pixels.shape
    spans = family.latent_spans(frames)
    assert [index for span in spans for index in span] == list(range(encoded_frames(frames)))
    for index, span in enumerate(spans):  # a latent frame depends on the frames of its span alone
        changed = pixels.clone()
        changed[span.start] = 255 - changed[span.start]
        moved = (autoencoder.encode(changed) != latents).flatten(2).any(-1)[0]
        assert moved.tolist() == [other == index for other in range(len(spans))]


def test_texts_are_bytes_and_padding_is_nothing(caplog):
    encoder, tokenizer = ToyTextEncoder(randomised(ToyTextModel(ToyTextConfig()))), ByteTokenizer(first=1)
    tokens = tokenizer.tokenise(["a ü", "a circle", ""], 6)
    assert tokens.tolist()[0] == [98, 33, 196, 189, PAD, PAD]
    assert "left out: 'le'" in caplog.text
    encoded = encoder.encode(tokens)
    assert (encoded == 0).all(-1).tolist() == (tokens == PAD).tolist()
    assert torch.equal(encoder.encode(tokens, Streamed(encoder.layers, CPU, 0)), encoded)


def schedule(kind, renewed=0.1):
    generator = torch.Generator().manual_seed(0)
    return ToySchedule(kind, {"shift": 3.0, "renewed": renewed}, 6, CPU, generator)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_true_velocity_leads_to_the_clean_latents(kind):
    run, clean = schedule(kind, renewed=0), torch.randn(1, 2, 6, 4, 4)
    latents = run.initial_noise(clean.shape)
    for index, timestep in enumerate(run.timesteps):
        latents = run.step((latents - clean) / (timestep / 1000), index, latents)
    torch.testing.assert_close(latents, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("lost", [None, "velocity", "generator"])
def test_a_schedule_goes_on_from_its_state(kind, lost):
    """And each part of the state matters: with one of another step, the next step is another."""
    run = schedule(kind)
    latents = run.initial_noise((1, 2, 6, 4, 4))
    latents = run.step(torch.randn_like(latents), 0, latents)
    earlier = {name: tensor.clone() for name, tensor in run.state().items()}
    latents = run.step(torch.randn_like(latents), 1, latents)
    state = {name: tensor.clone() for name, tensor in run.state().items()}
    prediction = torch.randn_like(latents)
    expected = run.step(prediction, 2, latents)
    other = schedule(kind)
    other.restore(state | ({lost: earlier[lost]} if lost else {}))
    same = torch.equal(other.step(prediction, 2, latents), expected)
    assert same == (lost is None or (kind == "euler" and lost == "velocity"))
