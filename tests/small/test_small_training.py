"""Training of the small models: stages that continue after a stop, and their data."""

import json
import shutil
from itertools import islice

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ditflow.errors import DitflowError
from ditflow.models.loading import ModelFolder
from ditflow.small import SMALL_MODELS, train
from ditflow.small.clips import made_clip
from ditflow.small.training import autoencoder, latents, shipped, split, tracking
from ditflow.small.training import transformer as transformers
from ditflow.small.training.export import export
from ditflow.small.training.loop import Training, averaged, progress_of
from ditflow.small.vocabulary import COLOURS, SHAPES

CPU = torch.device("cpu")
LONG = 60.0  # minutes


def little_training(checkpoint):
    """A training that fits a linear map with both optimisers."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)

    def loss(generator):
        inputs = torch.randn(16, 3, generator=generator)
        return (network(inputs) - inputs[:, :2] - 1).square().mean()

    optimisers = [torch.optim.Muon([network.weight], lr=0.03), torch.optim.AdamW([network.bias], lr=0.03)]
    return Training(network, optimisers, loss, checkpoint)


def test_a_stopped_training_continues_exactly(tmp_path):
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


def test_the_time_limit_ends_a_call_but_not_the_stage(tmp_path):
    training = little_training(tmp_path / "one.safetensors")
    training.run(steps=10**9, minutes=0.005)
    assert 0 < training.step == little_training(tmp_path / "one.safetensors").step
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert 0.1 < float(file.metadata()["seconds"]) < 2.0


def test_held_out_data_is_not_trained_on():
    prompts = split.held_out_prompts()
    assert len(set(prompts)) == 24 and all(colour != background for colour, _, background in prompts)
    assert {shape: [shape for _, shape, _ in prompts].count(shape) for shape in SHAPES} == dict.fromkeys(
        SHAPES, 8
    )
    assert {colour for colour, _, _ in prompts} == {back for _, _, back in prompts} == set(COLOURS)
    clips = list(islice(split.training_clips(), 60))
    assert not split.HELD_OUT_CAPTIONS & {clip.caption for clip in clips}
    skipped = [made_clip(seed, frames=1).caption for seed in split.TRAINING_SEEDS[:60]]
    assert split.HELD_OUT_CAPTIONS & set(skipped)  # these seeds do have held-out captions
    assert not set(split.TRAINING_SEEDS) & set(split.HELD_OUT_SEEDS)


def tiny_clip(seed):
    return made_clip(seed, frames=8, width=32, height=32)


def tiny_clips(seeds, painted=None):
    return map(tiny_clip, seeds)


def pixels_of(clip):
    return autoencoder.to_pixels(torch.from_numpy(clip.frames)[None])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The checkpoints of every stage after some steps on tiny clips."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "BATCHES", ((1, 8, 32, 32),))
        patch.setattr(autoencoder, "TRAINING_SEEDS", range(10_000, 10_001))
        patch.setattr(autoencoder, "made_clip", lambda seed, painted: tiny_clip(seed))
        for name, size in {"FRAMES": 8, "HEIGHT": 32, "WIDTH": 32}.items():
            patch.setattr(autoencoder, name, size)
        for module in (latents, tracking):
            patch.setattr(module, "TRAINING_SEEDS", range(10_000, 10_002))
            patch.setattr(module, "training_clips", tiny_clips)
        patch.setattr(torch, "compile", lambda network: network)
        patch.setattr(tracking, "WEIGHT", 1.0)
        stages = {"vae": 42, "decoder": 5, "rope": 30, "sincos": 1, "tracking": 40}
        patch.setattr(train, "STAGES", stages)
        exported = ["--export", str(folder / "models")]
        assert train.main(["--checkpoints", str(folder), *exported]) == 0
    return folder


def test_a_stopped_autoencoder_continues_exactly(tmp_path, monkeypatch):
    """Its weights have another memory layout than in the file."""
    monkeypatch.setattr(autoencoder, "BATCHES", ((1, 8, 32, 32), (2, 16, 16, 16)))
    ways = {"whole": (4,), "stopped": (2, 4)}
    for name, stops in ways.items():
        for stop in stops:
            training = autoencoder.autoencoder_training(tmp_path / name, CPU)
            for batch, _ in zip(training._batches(4), range(stop - training.step), strict=False):
                training._advance(0, *batch)
            training.save()
    whole, stopped = (averaged(tmp_path / name / "vae.safetensors") for name in ways)
    assert all(torch.equal(stopped[name], weights) for name, weights in whole.items())


def test_autoencoder_learns_a_clip(checkpoints):
    vae = autoencoder.trained_autoencoder(checkpoints)
    pixels = pixels_of(tiny_clip(10_000))
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    assert (decoded - pixels).square().mean() < 0.3 * pixels.var()


def test_the_decoder_is_trained_alone(checkpoints):
    """The encoder is unchanged, so encoded clips stay valid."""
    before, after = averaged(checkpoints / "vae.safetensors"), autoencoder.trained_autoencoder(checkpoints)
    for name, weights in after.state_dict().items():
        assert torch.equal(weights, before[name]) == name.startswith("encoder."), name


def test_sincos_starts_from_rope(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    for name in ("vae", "latents", "rope"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)
    started = transformers.transformer_training("sincos", tmp_path, CPU)
    assert started.step == 0 and not started.network.config.use_rotary_positional_embeddings
    wanted = averaged(checkpoints / "rope.safetensors")
    assert all(torch.equal(started.network.state_dict()[name], weights) for name, weights in wanted.items())


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
    rope = transformers._rope(transformer, transformers.grid_of(transformer, inputs[0]))
    with torch.no_grad():
        expected = transformer(*inputs, image_rotary_emb=rope).sample
        transformer.set_attn_processor(transformers.PlainAttention())
        plain = transformer(*inputs, image_rotary_emb=rope).sample
    assert (plain - expected).abs().max() < 1e-4 * expected.abs().max()


def test_transformer_learns(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    trained = transformers.transformer_training("rope", checkpoints, CPU)
    assert trained.step == 30
    for name in ("vae", "latents"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)
    fresh = transformers.transformer_training("rope", tmp_path, CPU)
    generator = torch.Generator()
    with torch.no_grad():
        after, before = (float(training.loss(generator.manual_seed(3))) for training in (trained, fresh))
    assert after < 0.8 * before


def test_attention_learns_to_follow(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "TRAINING_SEEDS", range(10_000, 10_002))
    monkeypatch.setattr(tracking, "training_clips", tiny_clips)
    for name in ("vae", "latents", "rope"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)
    monkeypatch.setattr(torch, "compile", lambda network: network)

    def errors(folder):
        """The errors of velocity and tracking, and the step."""
        training, found = tracking.tracking_training(folder, CPU), []
        for weight in (0.0, 1.0):
            monkeypatch.setattr(tracking, "WEIGHT", weight)
            with torch.no_grad():
                found.append(float(training.loss(torch.Generator().manual_seed(3))))
        return found[0], found[1] - found[0], training.step

    (same, before, made), (other, after, since) = errors(tmp_path), errors(checkpoints)
    assert (made, since) == (0, 40)
    assert after < 0.9 * before
    assert same < 1e-6 < other  # `rope` is the teacher


def test_a_stage_is_frozen_once_a_later_one_started_from_it(checkpoints, tmp_path, monkeypatch, capsys):
    for name in ("vae", "latents", "rope", "tracking"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)
    before = (tmp_path / "rope.safetensors").read_bytes()
    monkeypatch.setattr(torch, "compile", lambda network: network)
    monkeypatch.setattr(train, "STAGES", {"rope": 31, "tracking": 40})
    assert train.main(["rope", "--checkpoints", str(tmp_path)]) == 1
    assert "tracking.safetensors started from the present `rope`" in capsys.readouterr().err
    assert (tmp_path / "rope.safetensors").read_bytes() == before


@pytest.mark.parametrize("style", ["rope", "sincos"])
def test_export_is_what_was_trained(checkpoints, style):
    folder = ModelFolder(str(checkpoints / "models" / style), "float16", CPU)
    assert folder.transformer().rotary == (style == "rope")
    last = {"rope": "tracking", "sincos": "sincos"}[style]
    wanted = averaged(checkpoints / f"{last}.safetensors")
    exported = folder.transformer().network.state_dict()
    assert all(torch.equal(exported[name], weights.half()) for name, weights in wanted.items())
    wanted, vae = (
        autoencoder.trained_autoencoder(checkpoints).state_dict(),
        folder.autoencoder().network.state_dict(),
    )
    assert all(torch.equal(vae[name], weights.half()) for name, weights in wanted.items())
    scale = float(latents.material(checkpoints, CPU).scale)
    assert folder.config("vae")["scaling_factor"] == pytest.approx(scale, abs=1e-4)


def test_latents_of_an_earlier_autoencoder_are_refused(checkpoints, tmp_path):
    with pytest.raises(DitflowError, match="ditflow.small.train vae"):
        latents.material(tmp_path, CPU)
    for name in ("vae", "latents"):
        shutil.copy(checkpoints / f"{name}.safetensors", tmp_path)
    training = autoencoder.autoencoder_training(tmp_path, CPU)
    made = training.step
    training.step += 1
    training.save()
    with pytest.raises(DitflowError, match=f"at step {made} .* now at {made + 1}: to continue, remove"):
        latents.material(tmp_path, CPU)


def test_the_shipped_models_can_be_trained_further(checkpoints, tmp_path, monkeypatch):
    wan = shipped.shipped_folder("small-wan")
    folders = {name: checkpoints / "models" / style for name, style in SMALL_MODELS.items()}
    monkeypatch.setattr(shipped, "shipped_folder", (folders | {"small-wan": wan}).get)
    record = json.loads((wan.parent / shipped.RECORD).read_text())
    made = json.loads((checkpoints / "models" / shipped.RECORD).read_text())
    (checkpoints / "models" / shipped.RECORD).write_text(json.dumps(record | made))
    monkeypatch.setattr(torch, "compile", lambda network: network)
    shutil.copy(checkpoints / "sincos.safetensors", tmp_path)  # must stay untouched
    before = (tmp_path / "sincos.safetensors").read_bytes()
    shipped.adopt_shipped(tmp_path)
    assert (tmp_path / "sincos.safetensors").read_bytes() == before
    for stage in ("vae", "decoder", "rope", "tracking"):
        ours, theirs = (averaged(folder / f"{stage}.safetensors") for folder in (tmp_path, checkpoints))
        if stage == "vae":  # its decoder was trained further
            theirs = autoencoder.trained_autoencoder(checkpoints).state_dict()
        if stage == "rope":
            theirs = averaged(checkpoints / "tracking.safetensors")
        assert all(torch.equal(ours[name], weights.half().float()) for name, weights in theirs.items())
        made = [progress_of(folder / f"{stage}.safetensors") for folder in (tmp_path, checkpoints)]
        assert made[0] == made[1]
    assert progress_of(tmp_path / "wan.safetensors")["step"] == record["wan"]["step"]
    training = autoencoder.decoder_training(tmp_path, CPU)
    assert training.step == 5
    training.run(steps=6, minutes=LONG)
    assert training.step == 6


def test_export_needs_a_checkpoint(tmp_path):
    with pytest.raises(DitflowError, match="train it with"):
        export("sincos", tmp_path, tmp_path / "model")


def test_unknown_stage_is_explained(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["text"])
    assert stopped.value.code == 2
    assert "give one of vae, decoder, rope, sincos, tracking" in capsys.readouterr().err
