"""NaN or infinity stops a run in the step where it appears, and the step before is kept."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_inputs, settings_schedule, text_embeddings, tiny_backbone

from ditflow import DitflowError, transfer
from ditflow.memory.plain import PlainRunner
from ditflow.models.pixels import to_pixels
from ditflow.sampling.denoising import Denoising
from ditflow.sampling.finite import NotFinite, check_finite, check_latents, check_optimisation
from ditflow.settings import Settings


class Poisoned(PlainRunner):
    """Its n-th result of one kind holds NaN or infinity."""

    def __init__(self, backbone, what, nth, poison):
        super().__init__(backbone)
        self.what, self.left, self.poison = what, nth, poison

    def _poisoned(self, what, tensor):
        if what == self.what:
            self.left -= 1
            if not self.left:
                tensor = tensor.clone()
                tensor.view(-1)[-1] = self.poison
        return tensor

    def forward(self, *given):
        return [self._poisoned("prediction", each) for each in super().forward(*given)]

    def gradient(self, *given):
        loss, gradient = super().gradient(*given)
        return self._poisoned("loss", loss), self._poisoned("gradient", gradient)


def denoising(backbone, inputs, **changes):
    settings = Settings(
        model="small", steps=4, guided=0.5, optimisation_steps=3, guidance_blocks=[2], guidance_scale=1,
        dynamic_scale=False, **changes,
    )  # fmt: skip
    schedule, texts = settings_schedule(settings), text_embeddings(inputs.prompt)
    return Denoising(settings, schedule, texts, inputs.latents, lambda _: None)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize(
    "what, nth, message, last",
    [
        pytest.param(
            *("loss", 1, "the loss is NaN or infinite in optimisation step 1 of denoising step 1", -1),
            marks=pytest.mark.fault("NaN or infinity in the loss"),
        ),
        pytest.param(
            *("gradient", 5, "the gradient is NaN or infinite in optimisation step 2 of denoising step 2", 0),
            marks=pytest.mark.fault("NaN or infinity in the gradient"),
        ),
        pytest.param(
            *("prediction", 3, "the model's prediction contains NaN or infinity in denoising step 3", 1),
            marks=pytest.mark.fault("NaN or infinity in the latents"),
        ),
    ],
)
@pytest.mark.parametrize("optimise", ["latent", "embedding"])
def test_names_the_first_place_and_keeps_the_step_before(what, nth, message, last, poison, optimise):
    backbone = tiny_backbone()
    inputs = random_inputs(backbone, 3, 8, 12)
    poisoned = denoising(backbone, inputs, optimise=optimise)
    with pytest.raises(NotFinite, match=message):
        poisoned.run(Poisoned(backbone, what, nth, poison))
    assert poisoned.state.index == last
    assert poisoned.state.latents.isfinite().all()
    # a sound runner continues from there to the undisturbed result
    expected = denoising(backbone, inputs, optimise=optimise).run(PlainRunner(backbone))
    assert torch.equal(poisoned.run(PlainRunner(backbone)).latents, expected.latents)


def test_float16_may_skip_updates_but_its_losses_must_be_finite():
    check_optimisation(0, [1.0, 2.0], [float("inf"), float("nan")], may_overflow=True)
    with pytest.raises(NotFinite, match="the gradient .* optimisation step 2"):
        check_optimisation(0, [1.0, 2.0], [0.0, float("inf")], may_overflow=False)
    with pytest.raises(NotFinite, match="the loss .* optimisation step 1"):
        check_optimisation(0, [float("nan"), 2.0], [float("nan"), 0.0], may_overflow=True)


WEIGHTS = "a weight of the model or of a LoRA may be NaN"


@pytest.mark.parametrize(
    ("act", "told", "untold"),
    [
        (lambda: check_optimisation(0, [float("nan")], [0.0], False), WEIGHTS, "--learning-rate|--dtype"),
        (lambda: check_optimisation(0, [float("nan")], [0.0], True), "--dtype", "--learning-rate"),
        (lambda: check_optimisation(0, [1.0, float("nan")], [0.0, 0.0], False), "--learning-rate", WEIGHTS),
        (lambda: check_optimisation(1, [float("nan")], [0.0], False), "--learning-rate", WEIGHTS),
        (lambda: check_latents(0, {"x": torch.tensor(float("nan"))}), WEIGHTS, "--dtype"),
        (lambda: check_latents(0, {"x": torch.tensor(float("nan")).half()}), "--dtype", WEIGHTS),
        (lambda: check_finite(torch.tensor(float("inf")).bfloat16(), "reference"), WEIGHTS, "--dtype"),
    ],
)
def test_the_advice_can_help(act, told, untold):
    """A learning rate is blamed only after an update, float16 only where it is used."""
    with pytest.raises(NotFinite) as caught:
        act()
    assert re.search(told, str(caught.value)) and not re.search(untold, str(caught.value))


def test_encoded_inputs_are_checked():
    check_finite(torch.ones(3), "reference")
    with pytest.raises(NotFinite, match="the encoded negative prompt contains NaN"):
        check_finite(torch.tensor([1.0, float("inf")]), "negative_prompt")


@pytest.mark.fault("a learning rate that makes the optimisation diverge")
def test_divergence(fork_server, tmp_path):
    words = ["--set", "learning_rate=[1e30, 1e30]", "--set", "optimisation_steps=3"]
    assert fork_server.transfer(tmp_path, *words) == 1
    error = fork_server.error(tmp_path)
    assert "of denoising step 1; use a smaller --learning-rate" in error
    assert "resume" not in error  # it would come to the same


def broken(small_folder, tmp_path, change_weights=None, **config):
    """A copy of the model with another VAE."""
    folder = shutil.copytree(small_folder, tmp_path / "broken")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if change_weights:
        path = next((folder / "vae").glob("*.safetensors"))
        weights = load_file(path)
        change_weights(weights)
        save_file(weights, path, {"format": "pt"})
    return str(folder)


def nan_in(part):
    def change(weights):
        name = next(name for name in sorted(weights) if name.startswith(part) and name.endswith("weight"))
        weights[name].view(-1)[0] = float("nan")

    return change


@pytest.mark.parametrize("kind", ["mp4", "frames"])
@pytest.mark.parametrize("tile", ["none", "144x96"])
@pytest.mark.fault("NaN in the VAE's decoder")
def test_a_decoder_with_nan_writes_no_video(settings, small_folder, tmp_path, kind, tile, capsys):
    model = broken(small_folder, tmp_path, nan_in("decoder"))
    settings = replace(settings, model=model, format=kind, decode_tile=tile)
    with pytest.raises(NotFinite, match="the decoded video contains NaN or infinity") as caught:
        transfer(settings)
    assert not getattr(caught.value, "__notes__", [])  # resuming would come to the same
    names = {path.stem for path in Path(settings.output).iterdir()}
    assert "latents" in names and not names & {"result", "comparison", "run"}


@pytest.mark.fault("NaN in the VAE's encoder")
def test_an_encoder_with_nan(settings, small_folder, tmp_path):
    with pytest.raises(NotFinite, match="the encoded reference contains NaN or infinity"):
        transfer(replace(settings, model=broken(small_folder, tmp_path, nan_in("encoder"))))


@pytest.mark.parametrize("scale", [0, 0.0, float("nan"), float("inf")])
@pytest.mark.fault("a scaling factor of the VAE without meaning")
def test_scaling_factors(settings, small_folder, tmp_path, scale):
    with pytest.raises(DitflowError):
        transfer(replace(settings, model=broken(small_folder, tmp_path, scaling_factor=scale)))
    assert not list(Path(settings.output).glob("result*"))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_to_pixels(poison):
    values = torch.tensor([[-1.0, 0.0, 1.0], [-9.0, 9.0, 0.5]])
    assert to_pixels(values).tolist() == [[0, 128, 255], [0, 255, 191]]
    with pytest.raises(NotFinite):
        to_pixels(torch.tensor([0.0, poison]).bfloat16())
