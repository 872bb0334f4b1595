"""Training of small-wan: its autoencoder, its transformer, and what is exported."""

import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from ditflow.models.loading import ModelFolder
from ditflow.small import train
from ditflow.small.clips import made_clip
from ditflow.small.pipeline import TEXT_LENGTH, TEXT_WIDTH
from ditflow.small.training import (
    autoencoder,
    latents,
    loop,
    tracking,
    wan_autoencoder,
    wan_tracking,
    wan_transformer,
)
from ditflow.small.training.loop import averaged
from ditflow.small.wan_pipeline import PROMPT_LENGTH, TRANSFORMER

CPU = torch.device("cpu")
SEEDS = range(10_000, 10_002)


def tiny_clip(seed, painted=slice(None)):
    return made_clip(seed, frames=8, width=32, height=32, painted=painted)


def tiny_clips(seeds, painted=slice(None)):
    return map(tiny_clip, seeds)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The checkpoints of every stage after some steps on tiny clips, and the model they make."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wan_autoencoder, "BATCHES", ((1, 5, 32, 32),))
        patch.setattr(autoencoder, "TRAINING_SEEDS", SEEDS[:1])
        patch.setattr(autoencoder, "made_clip", tiny_clip)
        for name, size in {"FRAMES": 8, "HEIGHT": 32, "WIDTH": 32}.items():
            patch.setattr(autoencoder, name, size)
        patch.setattr(latents, "TRAINING_SEEDS", SEEDS)
        patch.setattr(latents, "training_clips", tiny_clips)
        patch.setattr(torch, "compile", lambda network: network)
        patch.setattr(nn.Module, "compile", lambda network: None)
        patch.setattr(loop, "WARM_UP", 5)
        patch.setattr(wan_tracking, "TRAINING_SEEDS", SEEDS)
        patch.setattr(tracking, "training_clips", tiny_clips)
        patch.setattr(wan_tracking, "WEIGHT", 1.0)
        patch.setattr(train, "STAGES", {"wan-vae": 40, "wan": 20, "wan-tracking": 20})
        assert train.main(["--checkpoints", str(folder), "--export", str(folder / "models")]) == 0
    return folder


def test_autoencoder_learns_a_clip(checkpoints):
    vae = wan_autoencoder.trained_wan_autoencoder(checkpoints)
    pixels = autoencoder.to_pixels(torch.from_numpy(tiny_clip(SEEDS[0]).frames[:5])[None])
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    assert (decoded - pixels).square().mean() < 0.3 * pixels.var()


def test_every_channel_of_the_latents_has_unit_variance(checkpoints):
    found = latents.material(checkpoints, CPU, latents.WAN)
    assert found.latents.shape == (2, 3, 8, 8, 8)  # the last of 8 frames is repeated
    spread, middle = torch.std_mean(found.latents.float(), dim=(0, 1, 3, 4))
    assert (spread - 1).abs().max() < 0.01 and middle.abs().max() < 0.01
    assert (found.texts[1] - found.texts[2]).norm() > 1


def test_plain_attention_is_attention_with_all_the_padding():
    transformer = WanTransformer3DModel(**TRANSFORMER)
    torch.manual_seed(0)
    for weights in transformer.parameters():
        nn.init.normal_(weights, std=0.1)
    video, timesteps = torch.randn(2, 8, 3, 8, 8), torch.tensor([10.0, 900.0])
    text = torch.randn(2, TEXT_LENGTH, TEXT_WIDTH)
    text[:, 9:] = 0
    padded = torch.cat([text, torch.zeros(2, PROMPT_LENGTH - TEXT_LENGTH, TEXT_WIDTH)], dim=1)
    with torch.no_grad():
        expected = transformer(video, timesteps, padded).sample
        wan_transformer.plain_attention(transformer)
        plain = transformer(video, timesteps, text).sample
    assert (plain - expected).abs().max() < 1e-4 * expected.abs().max()


def test_transformer_learns(checkpoints, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda network: None)
    trained = wan_transformer.wan_training(checkpoints, CPU)
    assert trained.step == 20
    generator, untrained = torch.Generator(), wan_transformer.new_wan_transformer()
    with torch.no_grad():
        after = float(trained.loss(generator.manual_seed(3)))
        trained.network.load_state_dict(untrained.state_dict())
        before = float(trained.loss(generator.manual_seed(3)))
    assert after < 0.9 * before


def test_attention_learns_to_follow(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(wan_tracking, "TRAINING_SEEDS", SEEDS)
    monkeypatch.setattr(tracking, "training_clips", tiny_clips)
    monkeypatch.setattr(nn.Module, "compile", lambda network: None)
    for name in ("wan-vae", "wan-latents", "wan"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)

    def errors(folder):
        """The errors of velocity and tracking, and the step."""
        training, found = wan_tracking.wan_tracking_training(folder, CPU), []
        for weight in (0.0, 1.0):
            monkeypatch.setattr(wan_tracking, "WEIGHT", weight)
            with torch.no_grad():
                found.append(float(training.loss(torch.Generator().manual_seed(3))))
        return found[0], found[1] - found[0], training.step

    (same, before, made), (other, after, since) = errors(tmp_path), errors(checkpoints)
    assert (made, since) == (0, 20)
    assert after < 0.95 * before
    assert same < 1e-6 < other  # the teacher is `wan`


def test_export_is_what_was_trained(checkpoints):
    folder = ModelFolder(str(checkpoints / "models/wan"), "float16", CPU)
    wanted = averaged(checkpoints / "wan-tracking.safetensors")
    exported = folder.transformer().network.state_dict()
    assert all(torch.equal(exported[name].half(), weights.half()) for name, weights in wanted.items())
    wanted = wan_autoencoder.trained_wan_autoencoder(checkpoints).state_dict()
    vae = folder.autoencoder().network.state_dict()
    assert all(torch.equal(vae[name], weights.half()) for name, weights in wanted.items())
    found, config = latents.material(checkpoints, CPU, latents.WAN), folder.config("vae")
    assert config["latents_mean"] == pytest.approx(found.mean.tolist(), abs=1e-4)
    assert config["latents_std"] == pytest.approx((1 / found.scale).tolist(), abs=1e-4)


def test_a_run_reads_clips_as_training_did(checkpoints):
    """The same latents, so that the transformer sees in a run what it was trained on."""
    folder = ModelFolder(str(checkpoints / "models/wan"), "float32", CPU)
    encoded = folder.autoencoder().encode(torch.from_numpy(tiny_clip(SEEDS[0]).frames))
    trained_on = latents.material(checkpoints, CPU, latents.WAN).latents[0].float()
    assert (encoded[0] - trained_on).abs().mean() < 0.03  # bfloat16 in training
