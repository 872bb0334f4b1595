"""What a LoRA file means, compared with merging by hand in float64."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_models import tiny_transformer

from ditflow.errors import DitflowError
from ditflow.models.lora import add_lora, check_fit

LAYERS = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_out.0", "proj_out")
RANK = 4


def peft_weights(layers=LAYERS, rank=RANK):
    """(down, up) by layer."""
    modules = dict(tiny_transformer().named_modules())
    generator = torch.Generator().manual_seed(3)
    found = {}
    for layer in layers:
        outputs, inputs = modules[layer].weight.shape
        found[layer] = (
            torch.randn(rank, inputs, generator=generator),
            torch.randn(outputs, rank, generator=generator),
        )
    return found


def in_layout(weights, before="transformer.", down="lora_A.weight", up="lora_B.weight", dots=True):
    tensors = {}
    for layer, pair in weights.items():
        name = before + (layer if dots else layer.replace(".", "_"))
        tensors |= dict(zip((f"{name}.{down}", f"{name}.{up}"), pair, strict=True))
    return tensors


def saved(path, tensors, header=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, header)
    return str(path)


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


def diffusers_header(**settings):
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in settings.items()}),
    }


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


@pytest.mark.fault("a LoRA or a scale of it that is beyond the weights' range")
@pytest.mark.parametrize(
    ("factor", "scale", "dtype"),
    [(1, ":1e39", torch.float32), (1e20, "", torch.float32), (1, ":1e5", torch.float16)],
)
def test_changes_beyond_the_weights_range_are_refused(factor, scale, dtype, tmp_path):
    weights = {layer: (factor * down, factor * up) for layer, (down, up) in peft_weights().items()}
    path = saved(tmp_path / "a.safetensors", in_layout(weights))
    with pytest.raises(
        DitflowError, match=f"adds more to .* than weights in {dtype} can be: give a smaller scale"
    ):
        check_fit(tiny_transformer(), path + scale, dtype)
    check_fit(tiny_transformer(), saved(tmp_path / "b.safetensors", in_layout(peft_weights())), dtype)


FIRST = f"transformer.{LAYERS[0]}"


def without(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def added(name, value=None):
    return lambda tensors: tensors.update({name: torch.ones(3) if value is None else value})


def poisoned(name, value):
    def change(tensors):
        tensors[name][0, 1] = value

    return change


def zeroed(tensors):
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = torch.zeros_like(tensors[name])


@pytest.mark.parametrize(
    ("change", "header", "parts"),
    [
        (without(f"{FIRST}.lora_B.weight"), {}, [f"missing: 1 ({LAYERS[0]}.lora_B)"]),
        (without(f"{FIRST}.lora_A.weight"), {}, [f"missing: 1 ({LAYERS[0]}.lora_A)"]),
        (
            without(f"{FIRST}.lora_A.weight", f"{FIRST}.lora_B.weight"),
            diffusers_header(target_modules=["to_q", *LAYERS[1:]]),
            [f"missing: 3 ({LAYERS[0]}.lora_A, transformer_blocks.1.attn1.to_q.lora_A"],
        ),
        (added(f"{FIRST}.lora_magnitude_vector"), {}, [f"unused: 1 ({FIRST}.lora_magnitude_vector)"]),
        (added(f"{FIRST}.dora_scale"), {}, [f"unused: 1 ({FIRST}.dora_scale)"]),
        (added(f"{FIRST}.lora_B.bias"), {}, [f"unused: 1 ({FIRST}.lora_B.bias)"]),
        (added("text_encoder.proj.lora_A.weight"), {}, ["unused: 1 (text_encoder.proj.lora_A.weight)"]),
        (
            added("lora_te_text_model.lora_down.weight"),
            {},
            ["unused: 1 (lora_te_text_model.lora_down.weight)"],
        ),
        (
            added("transformer.transformer_blocks.9.attn1.to_q.lora_A.weight"),
            {},
            ["unused: 1 (transformer.transformer_blocks.9.attn1.to_q.lora_A.weight)"],
        ),
        (added(f"{FIRST}.lora_A.other.weight"), {}, [f"unused: 1 ({FIRST}.lora_A."]),
        (added("transformer.proj_out.weight"), {}, ["unused: 1 (transformer.proj_out.weight)"]),
        (added("transformer.proj_out.diff"), {}, ["unused: 1 (transformer.proj_out.diff)"]),
        (added(f"{FIRST}.lora_A.weight", torch.ones(RANK, 5)), {}, ["is [4, 5], expected [4, 32]"]),
        (added(f"{FIRST}.lora_B.weight", torch.ones(32, 5)), {}, ["is [32, 5], expected [32, 4]"]),
        (added(f"{FIRST}.lora_A.weight", torch.ones(0, 32)), {}, ["is [0, 32]"]),
        (added(f"{FIRST}.lora_A.weight", torch.tensor(1.0)), {}, ["is []"]),
        (
            added(f"{FIRST}.lora_A.weight", torch.ones(RANK, 32, dtype=torch.int8)),
            {},
            [f"{FIRST}.lora_A.weight is I8"],
        ),
        (added(f"{FIRST}.alpha"), {}, [f"{FIRST}.alpha is [3], expected one number"]),
        (added(f"{FIRST}.alpha", torch.tensor(0.0)), {}, [f"the alpha of {LAYERS[0]} is 0"]),
        (added(f"{FIRST}.alpha", torch.tensor(math.nan)), {}, [f"NaN or infinity in {FIRST}.alpha"]),
        (poisoned(f"{FIRST}.lora_B.weight", math.nan), {}, [f"NaN or infinity in {FIRST}.lora_B.weight"]),
        (poisoned(f"{FIRST}.lora_A.weight", -math.inf), {}, [f"NaN or infinity in {FIRST}.lora_A.weight"]),
        (len, diffusers_header(use_dora=True), ["use_dora is True, expected null or false"]),
        (len, diffusers_header(peft_type="LOHA"), ["peft_type is 'LOHA', expected null or \"LORA\""]),
        (len, diffusers_header(init_lora_weights="pissa"), ["init_lora_weights is 'pissa', expected null"]),
        (len, diffusers_header(lora_alpha="8"), ["lora_alpha is '8', expected a number from"]),
        (len, diffusers_header(lora_alpha=math.nan), ["lora_alpha is nan, expected a number from"]),
        (
            len,
            diffusers_header(r=RANK, alpha_pattern={"(a+)+$": 1}),
            ["alpha_pattern is {'(a+)+$': 1}, expected"],
        ),
        (len, diffusers_header(r=8), ["has rank 4, its settings say 8"]),
        (len, {"lora_adapter_metadata": "{"}, ["is damaged"]),
        (len, {"lora_adapter_metadata": "[" * 100_000}, ["is damaged"]),
        (
            len,
            diffusers_header(rank_pattern={"[": 8}),
            ["the pattern '[' is wrong: unterminated character set"],
        ),
        (len, diffusers_header(bias="all"), ["bias is 'all', expected null or \"none\""]),
        (len, diffusers_header(lora_bias=True), ["lora_bias is True, expected null or false"]),
        (len, diffusers_header(modules_to_save=["x"]), ["modules_to_save is ['x'], expected null or []"]),
        (len, diffusers_header(layer_replication=[[0, 2]]), ["layer_replication is [[0, 2]], expected null"]),
        (
            added(f"{FIRST}.alpha", torch.tensor(8.0)),
            diffusers_header(lora_alpha=2),
            ["alpha is 8, and its settings"],
        ),
        (dict.clear, {"format": "pt"}, ["would change nothing: it holds no tensors"]),
        (zeroed, {}, ["would change nothing: it holds only zeros"]),
        (len, {"lora_adapter_metadata": "[]"}, ["lora_adapter_metadata is not a mapping of names to values"]),
    ],
    ids=lambda given: "",
)
def test_what_cannot_be_used_is_named(change, header, parts, tmp_path):
    tensors = in_layout(peft_weights())
    change(tensors)
    path = saved(tmp_path / "a.safetensors", tensors, header)
    model = tiny_transformer()
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(DitflowError) as error:
        add_lora(model, path)
    message = str(error.value)
    assert all(part in message for part in (path, *parts)), message
    assert "\n" not in message and len(message) < 1000
    if "NaN" not in message and "alpha" not in message:
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
