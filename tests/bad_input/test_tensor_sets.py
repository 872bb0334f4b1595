"""Weight files must hold exactly the tensors of their network."""

import json
import shutil

import pytest
import torch
from command_line import assert_refused, begun, case, transfer_words
from safetensors.torch import load_file, save_file

from ditflow.jobs import transfer as jobs
from ditflow.models.loading import ModelFolder

CPU = torch.device("cpu")
EMBEDDING = "encoder.embed_tokens.weight"


def without(name):
    return lambda tensors: tensors.pop(name)


def added(name):
    return lambda tensors: tensors.update({name: torch.zeros(2)})


def renamed(before, after):
    return lambda tensors: tensors.update({after: tensors.pop(before)})


def changed(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


TEXT = "encoder.block.1.layer.0.SelfAttention.q.weight"
BLOCK = "transformer_blocks.3.ff.net.2.weight"
VAE = "decoder.conv_out.conv.bias"


@pytest.mark.parametrize(
    ("part", "change", "parts"),
    [
        case("a text encoder without a tensor", "text_encoder", without(TEXT), [f"missing: 1 ({TEXT})"]),
        case(
            "a text encoder without its embedding", "text_encoder", without("shared.weight"), ["missing: 2"]
        ),
        case(
            "a text encoder with a renamed tensor",
            "text_encoder",
            renamed(TEXT, f"model.{TEXT}"),
            [f"missing: 1 ({TEXT})", f"unexpected: 1 (model.{TEXT})"],
        ),
        case("a transformer without a tensor", "transformer", without(BLOCK), [f"missing: 1 ({BLOCK})"]),
        case(
            "a transformer with a tensor too many",
            "transformer",
            added("ofs_proj.weight"),
            ["unexpected: 1 (ofs_proj.weight)"],
        ),
        case(
            "a transformer with a tensor of another shape",
            "transformer",
            changed(BLOCK, lambda tensor: tensor[1:].clone()),
            [f"of another shape: 1 ({BLOCK} is [127, 512], expected [128, 512])"],
        ),
        case(
            "a transformer with a tensor of integers",
            "transformer",
            changed(BLOCK, lambda tensor: tensor.to(torch.int8)),
            [f"not floating-point: 1 ({BLOCK} is I8)"],
        ),
        case("a VAE without a tensor", "vae", without(VAE), [f"missing: 1 ({VAE})"]),
        case("a VAE with a tensor too many", "vae", added("loss.weight"), ["unexpected: 1 (loss.weight)"]),
    ],
)
def test_sets_of_tensors(part, change, parts, small_folder, clip, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(jobs, "transfer", begun)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = shutil.copytree(small_folder, tmp_path / "model")
    path = next((model / part).glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    told = [f"{part}/ cannot be loaded", "its weights do not fit its config.json", *parts]
    assert_refused(capfd, transfer_words(model, clip), 1, *told)


def test_tied_weights_may_have_either_name(small_folder, tmp_path):
    model = shutil.copytree(small_folder, tmp_path / "model")
    path = model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    before = ModelFolder(str(model), "float32", CPU)
    tokens = before.tokenise(["a red circle"])
    expected = before.text_encoder().encode(tokens)
    tensors[EMBEDDING] = tensors.pop("shared.weight")
    save_file(tensors, path, {"format": "pt"})
    found = ModelFolder(str(model), "float32", CPU).text_encoder().encode(tokens)
    assert torch.equal(found, expected)


@pytest.mark.fault("tied weights that differ")
def test_tied_weights_are_equal(small_folder, tmp_path, clip, capfd):
    model = shutil.copytree(small_folder, tmp_path / "model")
    path = model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors[EMBEDDING] = tensors["shared.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    ModelFolder(str(model), "float32", CPU).check()
    tensors[EMBEDDING][0, 0] += 1
    save_file(tensors, path, {"format": "pt"})
    told = f"tied, but different: 1 ({EMBEDDING} and shared.weight)"
    assert_refused(capfd, transfer_words(model, clip), 1, told)


def test_shards_are_one_set(small_folder, tmp_path, clip, capfd):
    model = shutil.copytree(small_folder, tmp_path / "model")
    whole = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = {"a-00001-of-00002.safetensors": names[:30], "a-00002-of-00002.safetensors": names[30:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, whole.with_name(shard), {"format": "pt"})
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}, "metadata": {}}
    whole.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    words = transfer_words(model, clip)
    assert_refused(capfd, words, 1, "only one can be right: remove the others")
    whole.unlink()
    ModelFolder(str(model), "float32", CPU).check()
    second = whole.with_name("a-00002-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[29:]}, second)
    assert_refused(
        capfd, words, 1, f"given twice: 1 ({names[29]} in a-00001-of-00002.safetensors and a-00002"
    )
    save_file({name: tensors[name] for name in names[31:]}, second)
    assert_refused(capfd, words, 1, f"missing: 1 ({names[30]})")
