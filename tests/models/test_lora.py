"""What a LoRA file means, compared with merging by hand in float64."""

import json
import math

import pytest
import torch
from lora_files import LAYERS, RANK, diffusers_header, in_layout, peft_weights, saved
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_transformer

from ditflow.models.lora import add_lora


def by_hand(weights, factor=1.0):
    """The weights of the tiny transformer after the change, in float64."""
    changed = {name: value.double() for name, value in tiny_transformer().named_parameters()}
    for layer, (down, up) in weights.items():
        scale = factor[layer] if isinstance(factor, dict) else factor
        changed[f"{layer}.weight"] += scale * up.double() @ down.double()
    return changed


def assert_merged(given, expected):
    model = tiny_transformer()
    add_lora(model, given)
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)


KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "dots": False}


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"before": ""},
        {"before": "base_model.model."},
        {"before": "base_model.model.transformer."},
        {"before": "transformer.base_model.model."},
        {"before": "diffusion_model."},
        {"down": "lora_A.default.weight", "up": "lora_B.default.weight"},
        {"before": "base_model.model.", "down": "lora_A.my-adapter.weight", "up": "lora_B.my-adapter.weight"},
        {"down": "lora_down.weight", "up": "lora_up.weight"},
        {"down": "lora.down.weight", "up": "lora.up.weight"},
        {"down": "lora_linear_layer.down.weight", "up": "lora_linear_layer.up.weight"},
        {"before": "lora_unet_", **KOHYA},
        {"before": "lora_unet__", **KOHYA},
        {"before": "lora_transformer_", **KOHYA},
        {"before": "lycoris_", **KOHYA},
        {"before": "model.diffusion_model."},
        {"before": "pipe.dit."},
        {"before": "unet."},
        {"down": "lora_A", "up": "lora_B"},
    ],
    ids=str,
)
def test_layouts(layout, tmp_path):
    weights = peft_weights()
    assert_merged(saved(tmp_path / "a.safetensors", in_layout(weights, **layout)), by_hand(weights))


def test_the_layout_of_attention_processors(tmp_path):
    weights = peft_weights(LAYERS[:2])
    tensors = {}
    for layer, pair in weights.items():
        block, layer = layer.split(".to_")
        for part, tensor in zip(("down", "up"), pair, strict=True):
            tensors[f"transformer.{block}.processor.to_{layer.removesuffix('.0')}_lora.{part}.weight"] = (
                tensor
            )
    assert_merged(saved(tmp_path / "a.safetensors", tensors), by_hand(weights))


def test_layers_of_pictures(tmp_path):
    """Convolutions, as kohya writes them: `up` is a convolution of one pixel."""
    down, up = torch.randn(RANK, 4, 2, 2), torch.randn(32, RANK, 1, 1)
    names = [f"lora_unet_patch_embed_proj.lora_{part}.weight" for part in ("down", "up")]
    path = saved(tmp_path / "a.safetensors", dict(zip(names, (down, up), strict=True)))
    expected = by_hand({})
    change = torch.einsum("or,rihw->oihw", up[..., 0, 0].double(), down.double())
    expected["patch_embed.proj.weight"] += change
    assert_merged(path, expected)


ALPHAS = dict(zip(LAYERS, (1.0, 2.0, 32.0), strict=True))


def test_alpha_tensors(tmp_path):
    weights = peft_weights()
    tensors = in_layout(weights, "lora_unet_", **KOHYA)
    for layer, alpha in list(ALPHAS.items())[:2]:  # without one, alpha is the rank
        tensors[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(alpha)
    factor = {layer: ALPHAS[layer] / RANK for layer in LAYERS[:2]} | {LAYERS[2]: 1.0}
    assert_merged(saved(tmp_path / "a.safetensors", tensors), by_hand(weights, factor))
    tensors = in_layout(weights) | {
        f"transformer.{layer}.alpha": torch.tensor([alpha]) for layer, alpha in ALPHAS.items()
    }
    factor = {layer: alpha / RANK for layer, alpha in ALPHAS.items()}
    assert_merged(saved(tmp_path / "b.safetensors", tensors), by_hand(weights, factor))
    scaled = {layer: -0.5 * given for layer, given in factor.items()}
    assert_merged(f"{tmp_path / 'b.safetensors'}:-0.5", by_hand(weights, scaled))


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        (diffusers_header(r=RANK, lora_alpha=1), 0.25),
        (diffusers_header(r=RANK, lora_alpha=8, use_rslora=True), 8 / math.sqrt(RANK)),
        ({"lora_config": json.dumps({"r": RANK, "lora_alpha": 2})}, 0.5),
        ({"r": str(RANK), "lora_alpha": "2.0"}, 0.5),
        ({"rank": str(RANK), "alpha": "2"}, 0.5),
        ({"unrelated": "x"}, 1.0),
        (
            diffusers_header(r=RANK, lora_alpha=2, alpha_pattern={"proj_out": 8, "^transformer_blocks": 1}),
            dict(zip(LAYERS, (0.5, 0.5, 2.0), strict=True)),
        ),
        (
            diffusers_header(r=RANK, lora_alpha=2, alpha_pattern={"to_q": 8, f"^{LAYERS[1]}": 16}),
            dict(zip(LAYERS, (2.0, 4.0, 0.5), strict=True)),
        ),
    ],
    ids=str,
)
def test_alpha_in_the_header(header, factor, tmp_path):
    weights = peft_weights()
    path = saved(tmp_path / "a.safetensors", in_layout(weights), header)
    assert_merged(path, by_hand(weights, factor))


def test_ranks_per_layer(tmp_path):
    weights = peft_weights(LAYERS[:1], 2) | peft_weights(LAYERS[1:])
    path = saved(tmp_path / "a.safetensors", in_layout(weights))
    assert_merged(path, by_hand(weights))
    header = diffusers_header(r=RANK, lora_alpha=8, rank_pattern={f"^{LAYERS[0]}": 2})
    path = saved(tmp_path / "b.safetensors", in_layout(weights), header)
    assert_merged(path, by_hand(weights, {LAYERS[0]: 4.0, LAYERS[1]: 2.0, LAYERS[2]: 2.0}))


@pytest.mark.parametrize("stabilised", [False, True])
def test_a_folder_of_peft_is_merged_as_peft_does(tmp_path, stabilised):
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"proj_out": 12}}
    config = LoraConfig(
        r=RANK,
        lora_alpha=6,
        target_modules=list(LAYERS),
        use_rslora=stabilised,
        init_lora_weights=False,
        **patterns,
    )
    model = get_peft_model(tiny_transformer(), config)
    model.save_pretrained(tmp_path / "lora")
    merged = model.merge_and_unload()
    expected = {name: value.double() for name, value in merged.named_parameters()}
    assert_merged(str(tmp_path / "lora"), expected)
    assert_merged(str(tmp_path / "lora" / "adapter_model.safetensors"), expected)


def test_half_precision_weights_are_rounded_once(tmp_path):
    weights = peft_weights()
    model = tiny_transformer().to(torch.bfloat16)
    before = {name: value.double() for name, value in model.named_parameters()}
    add_lora(model, saved(tmp_path / "a.safetensors", in_layout(weights)) + ":0.3")
    for layer, (down, up) in weights.items():
        expected = before[f"{layer}.weight"] + 0.3 * up.double() @ down.double()
        found = model.get_submodule(layer).weight
        assert found.dtype == torch.bfloat16
        assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-6).all()


@pytest.mark.parametrize(
    "pattern",
    ["to_q", r".*\.to_q", r"transformer_blocks\.\d\.attn1\.to_q", "^transformer_blocks.0.attn1.to_q"],
)
def test_patterns_are_those_of_peft(pattern, tmp_path):
    weights = peft_weights(LAYERS[:1], 8) | peft_weights(LAYERS[1:])
    header = diffusers_header(r=RANK, lora_alpha=RANK, rank_pattern={pattern: 8}, alpha_pattern={pattern: 16})
    factor = {LAYERS[0]: 2.0, LAYERS[1]: 1.0, LAYERS[2]: 1.0}
    assert_merged(saved(tmp_path / "a.safetensors", in_layout(weights), header), by_hand(weights, factor))


def test_one_alpha_may_be_stated_twice(tmp_path):
    weights = peft_weights()
    tensors = in_layout(weights) | {f"transformer.{layer}.alpha": torch.tensor(8) for layer in LAYERS}
    path = saved(tmp_path / "a.safetensors", tensors, diffusers_header(r=RANK, lora_alpha=8))
    assert_merged(path, by_hand(weights, 2.0))
