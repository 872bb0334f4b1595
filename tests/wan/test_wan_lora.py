"""LoRAs for Wan, by the names of diffusers and of the original code, and for one of two transformers."""

import json

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers
from safetensors.torch import save_file
from tiny_wan import tiny_wan

from ditflow.errors import DitflowError
from ditflow.models.lora import add_lora, check_fit
from ditflow.models.wan.family import WanFamily
from ditflow.models.wan.names import original_name

RANK, FAMILY = 3, WanFamily()


def layers(network):
    return [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("before", ["transformer.", "diffusion_model.", ""])
@pytest.mark.parametrize("names", [str, original_name], ids=["diffusers", "original"])
def test_every_layer_is_changed_as_by_hand(names, before, tmp_path):
    network, tensors = tiny_wan(), {}
    expected = {name: value.double().clone() for name, value in network.named_parameters()}
    for layer in layers(network):
        outputs, inputs = network.get_submodule(layer).weight.shape
        down, up = torch.randn(RANK, inputs), torch.randn(outputs, RANK)
        tensors[f"{before}{names(layer)}.lora_A.weight"] = down
        tensors[f"{before}{names(layer)}.lora_B.weight"] = up
        expected[f"{layer}.weight"] += 0.5 * up.double() @ down.double()
    save_file(tensors, tmp_path / "lora.safetensors")
    given = f"{tmp_path / 'lora.safetensors'}:0.5"
    check_fit(network, given, torch.float32, FAMILY.other_name)
    add_lora(network, given, FAMILY.other_name)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_original_names_are_those_that_diffusers_converts():
    network = tiny_wan()
    blocks = [name for name in layers(network) if name.startswith("blocks.")]
    tensors = {
        f"diffusion_model.{original_name(layer)}.lora_{which}.weight": torch.zeros(1, 1)
        for layer in blocks
        for which in "AB"
    }
    converted = _convert_non_diffusers_wan_lora_to_diffusers(tensors)
    assert {name.removeprefix("transformer.").rsplit(".", 2)[0] for name in converted} == set(blocks)


def test_layers_that_the_model_lacks_are_named(tmp_path):
    """As of a LoRA for image to video."""
    tensors = {f"blocks.0.cross_attn.k_img.lora_{which}.weight": torch.ones(32, 1) for which in "AB"}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(DitflowError, match="unused: 2 .*k_img"):
        add_lora(tiny_wan(), str(tmp_path / "lora.safetensors"), FAMILY.other_name)


TWO = FAMILY.variant({"boundary_ratio": 0.875}).experts
CHANGED = ("blocks.0.attn1.to_q", "blocks.2.ffn.net.2", "proj_out")


def lora_tensors(before, seed, layers=CHANGED):
    """A LoRA's tensors by name, and the change of each weight in float64."""
    generator, network, tensors, change = torch.Generator().manual_seed(seed), tiny_wan(), {}, {}
    for layer in layers:
        outputs, inputs = network.get_submodule(layer).weight.shape
        down, up = (
            torch.randn(RANK, inputs, generator=generator),
            torch.randn(outputs, RANK, generator=generator),
        )
        tensors |= {f"{before}{layer}.lora_A.weight": down, f"{before}{layer}.lora_B.weight": up}
        change[f"{layer}.weight"] = up.double() @ down.double()
    return tensors, change


def assert_changed(given, *changes):
    """That LoRAs change the weights of each of two transformers by this much, and no others."""
    for index, change in enumerate(changes):
        network = tiny_wan(seed=index)
        before = {name: value.double().clone() for name, value in network.named_parameters()}
        for each in given:
            check_fit(network, each, torch.float32, FAMILY.other_name, TWO, index)
            add_lora(network, each, FAMILY.other_name, TWO, index)
        for name, value in network.named_parameters():
            if name in change:
                expected = before[name] + change[name]
                torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(value.double(), before[name]), name


def scaled(factor, change):
    return {name: factor * value for name, value in change.items()}


@pytest.mark.parametrize("before", ["transformer.", "diffusion_model.", ""])
def test_a_pair_of_files_changes_each_transformer_by_its_own(before, tmp_path):
    changes = []
    for seed, name in enumerate(("high", "low")):
        tensors, change = lora_tensors(before, seed)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        changes.append(change)
    high, low = (f"{name}={tmp_path / name}.safetensors" for name in ("high", "low"))
    assert_changed([high, f"{low}:0.5"], changes[0], scaled(0.5, changes[1]))
    assert_changed([low], {}, changes[1])
    assert_changed([high, high.replace("high=", "low=")], changes[0], changes[0])


def test_one_file_for_both_says_which_by_its_names(tmp_path):
    """With an alpha for each, as diffusers writes it."""
    first, change = lora_tensors("transformer.", 0)
    second, other = lora_tensors("transformer_2.", 1, CHANGED[:2])
    alphas = {"transformer.r": RANK, "transformer.lora_alpha": RANK}
    alphas |= {"transformer_2.r": RANK, "transformer_2.lora_alpha": 2 * RANK}
    header = {"lora_adapter_metadata": json.dumps(alphas)}
    save_file(first | second, tmp_path / "both.safetensors", header)
    assert_changed([str(tmp_path / "both.safetensors")], change, scaled(2, other))


@pytest.mark.parametrize("told", ["", "low="])
def test_a_file_for_the_second_transformer_says_so(told, tmp_path):
    tensors, change = lora_tensors("base_model.model.transformer_2.", 1)
    save_file(tensors, tmp_path / "second.safetensors")
    assert_changed([f"{told}{tmp_path / 'second.safetensors'}"], {}, change)


@pytest.mark.parametrize(
    "prefixes, told, says",
    [
        (
            ["transformer."],
            "",
            "does not say which of the model's 2 transformers it changes; give --lora high=",
        ),
        ([""], "", "does not say which"),
        (["transformer.", "transformer_2."], "high=", "says itself which transformers it changes; leave out"),
        (["transformer.", "transformer_2."], "low=", "leave out low="),
        (["transformer_2."], "high=", "leave out high="),
        (["diffusion_model.", "transformer_2."], "", "diffusion_model.* does not say which transformer"),
        (["transformer.", "transformer_2.text."], "", "unused: 6 .transformer_2.text"),
        (["transformer.", "transformer_2_"], "high=", "unused: 6 .transformer_2_blocks"),
    ],
)
def test_files_that_do_not_say_or_contradict_are_refused(prefixes, told, says, tmp_path):
    tensors = {name: value for before in prefixes for name, value in lora_tensors(before, 0)[0].items()}
    save_file(tensors, path := tmp_path / "lora.safetensors")
    with pytest.raises(DitflowError, match=says) as error:
        for index in range(2):
            check_fit(tiny_wan(), f"{told}{path}", torch.float32, FAMILY.other_name, TWO, index)
    assert "\n" not in str(error.value)


def test_a_model_with_one_transformer_takes_no_tensors_of_a_second(tmp_path):
    save_file(lora_tensors("transformer_2.", 0)[0], tmp_path / "lora.safetensors")
    with pytest.raises(DitflowError, match="unused: 6 .transformer_2.blocks"):
        add_lora(tiny_wan(), str(tmp_path / "lora.safetensors"), FAMILY.other_name)
