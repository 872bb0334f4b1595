"""Training of the small model: stages that go on where they stopped, and what they learn from."""

import shutil
from itertools import islice

import pytest
import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from safetensors import safe_open
from torch import nn

from ditflow.backbone.loading import ModelFolder
from ditflow.errors import DitflowError
from ditflow.small import train
from ditflow.small.clips import made_clip
from ditflow.small.training import autoencoder, latents, split
from ditflow.small.training import transformer as transformers
from ditflow.small.training.export import export
from ditflow.small.training.loop import Training, averaged
from ditflow.small.vocabulary import COLOURS, SHAPES

CPU = torch.device("cpu")
LONG = 60.0  # minutes


def little_training(checkpoint):
    """A training that fits a linear map, with both kinds of optimisers."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)

    def loss(generator):
        inputs = torch.randn(16, 3, generator=generator)
        return (network(inputs) - inputs[:, :2] - 1).square().mean()

    optimisers = [torch.optim.Muon([network.weight], lr=0.03), torch.optim.AdamW([network.bias], lr=0.03)]
    return Training(network, optimisers, loss, checkpoint)


def test_stopped_training_goes_on_exactly_there(tmp_path):
    whole = little_training(tmp_path / "whole.safetensors")
    whole.run(steps=200, minutes=LONG)
    inputs = torch.randn(64, 3)
    assert (whole.network(inputs) - inputs[:, :2] - 1).square().mean() < 0.1

    path = tmp_path / "stopped.safetensors"
    stopped = little_training(path)
    for step in range(70):
        stopped._advance(step / 200)
    stopped.save()
    again = little_training(path)
    assert again.step == 70
    again.run(steps=200, minutes=LONG)
    assert again.step == 200 and torch.equal(again.network.weight, whole.network.weight)
    assert torch.equal(averaged(path)["bias"], averaged(tmp_path / "whole.safetensors")["bias"])
    assert not torch.equal(averaged(path)["weight"], whole.network.weight)


def test_time_ends_a_call_and_not_the_stage(tmp_path):
    training = little_training(tmp_path / "one.safetensors")
    training.run(steps=10**9, minutes=0.005)
    assert 0 < training.step == little_training(tmp_path / "one.safetensors").step
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert 0.1 < float(file.metadata()["seconds"]) < 2.0


def test_what_is_held_out_is_not_trained_on():
    prompts = split.held_out_prompts()
    assert len(set(prompts)) == 24 and all(colour != background for colour, _, background in prompts)
    assert {shape: [shape for _, shape, _ in prompts].count(shape) for shape in SHAPES} == dict.fromkeys(
        SHAPES, 8
    )
    assert {colour for colour, _, _ in prompts} == {back for _, _, back in prompts} == set(COLOURS)
    clips = list(islice(split.training_clips(), 60))
    assert not split.HELD_OUT_CAPTIONS & {clip.caption for clip in clips}
    skipped = [made_clip(seed, frames=1).caption for seed in split.TRAINING_SEEDS[:60]]
    assert split.HELD_OUT_CAPTIONS & set(skipped)  # there was something to leave out
    assert not set(split.TRAINING_SEEDS) & set(split.HELD_OUT_SEEDS)


def tiny_clip(seed):
    return made_clip(seed, frames=8, width=32, height=32)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Every stage for some steps, on very small clips."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "BATCHES", ((1, 8, 32, 32),))
        patch.setattr(autoencoder, "TRAINING_SEEDS", range(10_000, 10_001))
        patch.setattr(latents, "training_clips", lambda: map(tiny_clip, range(10_000, 10_002)))
        patch.setattr(torch, "compile", lambda network: network)
        patch.setattr(train, "STAGES", {"vae": 20, "rope": 60, "sincos": 1})
        exported = ["--export", str(folder / "models")]
        assert train.main(["--checkpoints", str(folder), *exported]) == 0
    return folder


def test_stopped_autoencoder_goes_on_exactly_there(tmp_path, monkeypatch):
    """Its weights are not laid out in memory as they are in the file."""
    monkeypatch.setattr(autoencoder, "BATCHES", ((1, 8, 32, 32), (2, 16, 16, 16)))
    ways = {"whole": (4,), "stopped": (2, 4)}
    for name, stops in ways.items():
        for stop in stops:
            training = autoencoder.autoencoder_training(tmp_path / name, CPU)
            while training.step < stop:
                training._advance(0)
            training.save()
    whole, stopped = (averaged(tmp_path / name / "vae.safetensors") for name in ways)
    assert all(torch.equal(stopped[name], weights) for name, weights in whole.items())


def test_autoencoder_learns_a_clip(checkpoints):
    vae = latents.trained_autoencoder(checkpoints)
    torch.manual_seed(0)
    pixels = autoencoder.to_pixels(tiny_clip(10_000))
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    assert (decoded - pixels).square().mean() < 0.3 * pixels.var()


def test_latents_have_unit_variance_and_their_captions(checkpoints):
    found = latents.material(checkpoints, CPU)
    assert found.latents.shape == (2, 2, 8, 8, 8)
    assert found.latents.std() == pytest.approx(1, abs=0.01)
    assert found.captions.tolist() == [1, 2] and len(found.texts) == 3  # the first text is empty
    assert (found.texts[1] - found.texts[2]).norm() > 1


@pytest.mark.parametrize("style", ["rope", "sincos"])
def test_plain_attention_is_attention(style):
    transformer = transformers.new_transformer(style)
    torch.manual_seed(0)
    for weights in transformer.parameters():
        nn.init.normal_(weights, std=0.1)
    inputs = torch.randn(2, 6, 8, 16, 24), torch.randn(2, 16, 64), torch.tensor([10, 900])
    rope = transformers._rope(transformer, inputs[0])
    with torch.no_grad():
        plain = transformer(*inputs, image_rotary_emb=rope).sample
        transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
        expected = transformer(*inputs, image_rotary_emb=rope).sample
    assert (plain - expected).abs().max() < 1e-4 * expected.abs().max()


def test_transformer_learns(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    trained = transformers.transformer_training("rope", checkpoints, CPU)
    assert trained.step == 60
    for name in ("vae", "latents"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)
    fresh = transformers.transformer_training("rope", tmp_path, CPU)
    generator = torch.Generator()
    with torch.no_grad():
        after, before = (float(training.loss(generator.manual_seed(3))) for training in (trained, fresh))
    assert after < 0.8 * before


@pytest.mark.parametrize("style", ["rope", "sincos"])
def test_export_is_what_was_trained(checkpoints, style):
    folder = ModelFolder(str(checkpoints / "models" / style), "float16", CPU)
    assert folder.backbone().rotary == (style == "rope")
    wanted = averaged(checkpoints / f"{style}.safetensors")
    exported = folder.backbone().transformer.state_dict()
    assert all(torch.equal(exported[name], weights.half()) for name, weights in wanted.items())
    wanted = averaged(checkpoints / "vae.safetensors")
    vae = folder.vae()
    assert torch.equal(vae.decoder.conv_in.conv.weight, wanted["decoder.conv_in.conv.weight"].half())
    scale = float(latents.material(checkpoints, CPU).scale)
    assert vae.config.scaling_factor == pytest.approx(scale, abs=1e-4)


def test_latents_of_an_earlier_autoencoder_are_refused(checkpoints, tmp_path):
    with pytest.raises(DitflowError, match="ditflow.small.train vae"):
        latents.material(tmp_path, CPU)
    for name in ("vae", "latents"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)
    training = autoencoder.autoencoder_training(tmp_path, CPU)
    training.step += 1
    training.save()
    with pytest.raises(DitflowError, match=r"at step 20 .* now at 21: remove"):
        latents.material(tmp_path, CPU)


def test_export_needs_a_checkpoint(tmp_path):
    with pytest.raises(DitflowError, match="train it with"):
        export("sincos", tmp_path, tmp_path / "model")


def test_unknown_stage_is_explained(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["text"])
    assert stopped.value.code == 2
    assert "choose of vae, rope, sincos" in capsys.readouterr().err
