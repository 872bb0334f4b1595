"""LoRA files that cannot be used are refused, and what is wrong is named."""

import math

import pytest
import torch
from lora_files import LAYERS, RANK, diffusers_header, in_layout, peft_weights, saved
from tiny_models import tiny_transformer

from ditflow.errors import DitflowError
from ditflow.models.lora import add_lora, check_fit


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
