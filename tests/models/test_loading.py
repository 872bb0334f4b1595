"""Loading models: local folders, the hub without a network, and LoRA files."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_models import tiny_transformer

from ditflow.errors import DitflowError
from ditflow.models import loading
from ditflow.models.cogvideox.family import CogVideoXFamily
from ditflow.models.finding import find_folder
from ditflow.models.hub import missing_files
from ditflow.models.loading import ModelFolder
from ditflow.models.lora import add_lora, split_lora

CPU = torch.device("cpu")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache and a hub that cannot be reached."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_local_folder_loads_part_by_part(small_folder, dtype):
    folder = ModelFolder(str(small_folder), dtype, CPU)
    backbone, vae, encoder = folder.transformer(), folder.autoencoder(), folder.text_encoder()
    for module in (backbone.network, vae.network, encoder.network):
        assert {parameter.dtype for parameter in module.parameters()} <= {
            getattr(torch, dtype),
            torch.float32,
        }
    assert backbone.dtype == getattr(torch, dtype)
    assert folder.config("scheduler")["prediction_type"] == "v_prediction"
    assert folder.tokenise(["a red circle"])[0, -1] == 0  # padded


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda folder: (folder / "model_index.json").unlink(), "without model_index.json"),
        (lambda folder: shutil.rmtree(folder / "transformer"), "transformer/ cannot be loaded"),
        (
            lambda folder: (folder / "transformer" / "config.json").write_text("{"),
            "transformer/ cannot be loaded",
        ),
        (
            lambda folder: next((folder / "transformer").glob("*.safetensors")).write_bytes(b"short"),
            "transformer/ cannot be loaded",
        ),
    ],
    ids=["no-index", "no-transformer", "bad-config", "cut-weights"],
)
def test_damaged_folder(small_folder, tmp_path, break_it, message):
    shutil.copytree(small_folder, tmp_path / "model")
    break_it(tmp_path / "model")
    with pytest.raises(DitflowError) as error:
        ModelFolder(str(tmp_path / "model"), "float32", CPU).transformer()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_part_is_checked_again_only_if_its_files_have_changed(small_folder, tmp_path, monkeypatch):
    model, checked = shutil.copytree(small_folder, tmp_path / "model"), []
    monkeypatch.setattr(loading, "check_tensors", lambda network, files: checked.append(type(network)))
    folder = ModelFolder(str(model), "float32", CPU)
    folder.check()
    assert len(checked) == 3
    folder.transformer()
    assert len(checked) == 3
    os.utime(next((model / "transformer").glob("*.safetensors")), (0, 0))
    folder.transformer()
    assert len(checked) == 4


def test_pickled_weights_are_not_read(small_folder, tmp_path):
    shutil.copytree(small_folder, tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    torch.save({"x": torch.ones(1)}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(DitflowError, match=r"\.bin is a pickle, and loading one can run code"):
        ModelFolder(str(tmp_path / "model"), "float32", CPU).transformer()


@pytest.mark.parametrize(
    "model, parts",
    [
        ("5b", ["THUDM/CogVideoX-5b", "21 GB", "licence", "--model FOLDER"]),
        ("2b", ["THUDM/CogVideoX-2b", "13 GB", "Apache-2.0", "--model FOLDER"]),
        ("someone/else", ["someone/else", "--model FOLDER"]),
    ],
)
def test_no_network_and_no_cache(no_network, model, parts):
    with pytest.raises(DitflowError) as error:
        find_folder(model)
    assert all(part in str(error.value) for part in parts)
    assert "\n" not in str(error.value)


def test_cached_model_needs_no_network(no_network, small_folder, tmp_path):
    """The hub's cache layout: refs/main names a commit, snapshots/<commit> holds the files."""
    cache = tmp_path / "cache" / "models--THUDM--CogVideoX-5b"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    shutil.copytree(small_folder, cache / "snapshots" / ("a" * 40))
    assert ModelFolder("5b", "float32", CPU).config("transformer")["num_layers"] == 6


@pytest.mark.parametrize("model", ["no-such-model", "./absent", "/absent/folder", "a/b/c"])
def test_unknown_model(model):
    with pytest.raises(
        DitflowError,
        match="accepted: 2b, 5b, small, small-sincos, small-wan, wan-.* .configs/models/., OWNER/NAME",
    ):
        find_folder(model)


def lora_file(path, layer="to_q", seed=1):
    """Write a LoRA file as CogVideoX trainers do; return the change it makes to a weight of block 0."""
    model = tiny_transformer()
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=[f"transformer_blocks.0.attn1.{layer}"]))
    torch.manual_seed(seed)
    weights = {
        f"transformer.{name}": torch.randn_like(w) for name, w in get_peft_model_state_dict(model).items()
    }
    save_file(weights, path)
    up = next(w for name, w in weights.items() if "lora_B" in name)
    down = next(w for name, w in weights.items() if "lora_A" in name)
    return up @ down


def test_loras_add_up(tmp_path):
    first = lora_file(tmp_path / "first.safetensors", seed=1)
    second = lora_file(tmp_path / "second.safetensors", seed=2)
    model = tiny_transformer()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    add_lora(model, f"{tmp_path / 'first.safetensors'}:0.5")
    add_lora(model, str(tmp_path / "second.safetensors"))
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()  # merged: no adapter remains
    changed = "transformer_blocks.0.attn1.to_q.weight"
    torch.testing.assert_close(after[changed], before[changed] + 0.5 * first + second)
    assert all(torch.equal(after[name], before[name]) for name in before if name != changed)


def test_bad_loras(tmp_path, monkeypatch):
    refused = {
        "absent.safetensors": "no such file",
        "weights.bin": "is a pickle",
        "weights.txt": "only .safe",
    }
    for name, message in refused.items():
        with pytest.raises(DitflowError, match=message):
            add_lora(tiny_transformer(), str(tmp_path / name))
    with pytest.raises(DitflowError, match="give a .safetensors file, a folder or OWNER/NAME"):
        add_lora(tiny_transformer(), "")
    save_file({"unet.to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(DitflowError, match=r"does not fit this model \(unused: 1 \(unet.to_q"):
        add_lora(tiny_transformer(), str(tmp_path / "other.safetensors"))
    lora_file(tmp_path / "wide.safetensors")
    with pytest.raises(DitflowError, match="wide.safetensors"):
        add_lora(tiny_transformer(num_attention_heads=4), str(tmp_path / "wide.safetensors"))


@pytest.mark.parametrize(
    "given, expected",
    [
        ("a/b", ("a/b", 1.0, "")),
        ("a/b:0.8", ("a/b", 0.8, "")),
        ("C:file", ("C:file", 1.0, "")),
        ("x:-1", ("x", -1.0, "")),
        ("high=a/b:0.8", ("a/b", 0.8, "high")),
        ("low=x=y", ("x=y", 1.0, "low")),
        ("other=x", ("other=x", 1.0, "")),
        ("high", ("high", 1.0, "")),
    ],
)
def test_lora_scale(given, expected):
    assert split_lora(given) == expected


def test_model_index_names_the_pipeline_class(small_folder):
    assert json.loads((small_folder / "model_index.json").read_text())["_class_name"] == "CogVideoXPipeline"


@pytest.mark.parametrize(
    "break_it, missing",
    [
        (lambda folder: (folder / "model_index.json").unlink(), ["model_index.json"]),
        (lambda folder: shutil.rmtree(folder / "scheduler"), ["scheduler/"]),
        (lambda folder: next(folder.glob("vae/*.safetensors")).unlink(), ["vae/*.safetensors"]),
        (lambda folder: in_shards(folder / "transformer"), []),
        (
            lambda folder: in_shards(folder / "transformer", left_out=1),
            ["transformer/model-00002-of-00003.safetensors"],
        ),
        (
            lambda folder: in_shards(folder / "transformer").unlink(),
            ["transformer/*.safetensors"],
        ),
        (
            lambda folder: in_shards(folder / "transformer").write_text('{"weight_'),
            ["transformer/model.safetensors.index.json"],
        ),
    ],
    ids=["index", "part", "weights", "whole-shards", "shard", "shards-without-index", "cut-index"],
)
def test_an_incomplete_download_is_noticed(no_network, small_folder, tmp_path, break_it, missing):
    """The download would then be resumed, which is refused here because the hub is turned off."""
    cache = tmp_path / "cache" / "models--THUDM--CogVideoX-5b"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    folder = cache / "snapshots" / ("a" * 40)
    shutil.copytree(small_folder, folder)
    break_it(folder)
    assert missing_files(folder, CogVideoXFamily.parts) == missing
    if missing:
        with pytest.raises(DitflowError, match="are not on this machine"):
            find_folder("5b")
    else:
        assert find_folder("5b") == folder


def in_shards(part, left_out=None):
    """Replace weights by three shards and an index, as larger models have them; return the index."""
    next(part.glob("*.safetensors")).unlink()
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        if number != left_out:
            (part / name).write_bytes(b"")
    index = part / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"layer.{i}": name for i, name in enumerate(names * 2)}}))
    return index
