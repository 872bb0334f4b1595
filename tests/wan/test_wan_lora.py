"""LoRAs for Wan, by the names of diffusers and of the original code."""

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
