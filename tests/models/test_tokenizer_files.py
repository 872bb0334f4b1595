"""A tokenizer's files are checked before they are read: damaged ones would lose words in silence."""

import json
import os
import shutil

import pytest
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from ditflow.errors import DitflowError
from ditflow.models.loading import ModelFolder

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "a blue square on a white background")


@pytest.fixture
def model(small_folder, tmp_path):
    return shutil.copytree(small_folder, tmp_path / "model")


def refused(model, *parts):
    with pytest.raises(DitflowError) as found:
        ModelFolder(str(model), "float32", CPU).check()
    assert all(part in str(found.value) for part in parts) and "\n" not in str(found.value), found.value


def without(field):
    return lambda proto: proto.ClearField(field)


def shortened(count):
    def change(proto):
        del proto.pieces[-count:]

    return change


def lengthened(proto):
    proto.pieces.extend(proto.pieces[-1:] * 5)


@pytest.mark.fault("a vocabulary that was cut short, or is of another model")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (shortened(1), "expected {pieces}: download it again"),
        (shortened(20), "expected {pieces}: download it again"),
        (without("normalizer_spec"), "lacks its normalizer_spec"),
        (without("trainer_spec"), "lacks its trainer_spec"),
        (lengthened, "expected at most {pieces}, as text_encoder/config.json says"),
    ],
)
def test_vocabularies(model, change, told):
    path = model / "tokenizer" / "spiece.model"
    proto = ModelProto.FromString(path.read_bytes())
    pieces = len(proto.pieces)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    refused(model, str(path), told.format(pieces=pieces))


@pytest.mark.fault("a vocabulary that was cut short at any byte")
def test_cut_vocabularies(model):
    path = model / "tokenizer" / "spiece.model"
    whole = path.read_bytes()
    for length in [*range(1, len(whole), len(whole) // 50), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:length])
        refused(model, str(path), "download it again")


@pytest.mark.fault("a tokenizer's side file with a wrong value")
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("special_tokens_map.json", {"pad_token": 3}, "pad_token is 3, expected a text"),
        ("special_tokens_map.json", {"eos_token": {"lstrip": True}}, "it lacks eos_token.content"),
        ("special_tokens_map.json", {"unk_token": {"content": "?", "rstrip": 1}}, "unk_token.rstrip is 1"),
        ("special_tokens_map.json", {"additional_special_tokens": "x"}, "expected a list of at most 10000"),
        ("special_tokens_map.json", [], "is not a mapping"),
        ("added_tokens.json", {"<new>": "7"}, "<new> is '7', expected a whole number from 0"),
        ("added_tokens.json", {"<new>": 10**12}, "expected a whole number from 0 to 1000000"),
        ("tokenizer.json", {}, "it lacks model"),
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "vocab": []}},
            "model.type is 'BPE', expected \"Unigram\"",
        ),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": {"a": 0}}}, "model.vocab is {'a': 0}"),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": [["a"]]}}, "model.vocab[0] is ['a']"),
        ("tokenizer_config.json", {"pad_token": []}, "pad_token is [], expected a text"),
        ("tokenizer_config.json", {"vocab": [["a", 0.0]]}, "vocab is [['a', 0.0]], expected null"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "added_tokens_decoder is {'x': 'a'}"),
    ],
)
def test_side_files(model, name, content, told):
    (model / "tokenizer" / name).write_text(json.dumps(content))
    refused(model, name, told)


@pytest.mark.fault("a named pipe anywhere in a model's folder")
@pytest.mark.parametrize("name", ["tokenizer/chat_template.jinja", "vae/a/b.txt", "text_encoder/readme"])
def test_pipes(model, name):
    (model / name).parent.mkdir(exist_ok=True)
    os.mkfifo(model / name)
    refused(model, f"{model / name} is a named pipe: give a regular file")


@pytest.mark.fault("a text encoder that names another model to load")
def test_adapters(model):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "/somewhere/else"}
    (model / "text_encoder" / "adapter_config.json").write_text(json.dumps(adapter))
    refused(model, "text_encoder/adapter_config.json names another model to load")


def test_ordinary_side_files_are_accepted(model):
    expected = ModelFolder(str(model), "float32", CPU).tokenise(PROMPTS)
    tokens = {
        "pad_token": {"content": "<pad>", "lstrip": False, "normalized": False, "rstrip": False},
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (model / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(tokens))
    (model / "tokenizer" / "added_tokens.json").write_text(json.dumps({}))
    assert torch.equal(ModelFolder(str(model), "float32", CPU).tokenise(PROMPTS), expected)


def test_what_transformers_saves_is_accepted(model):
    folder = ModelFolder(str(model), "float32", CPU)
    expected = folder.tokenise(PROMPTS)
    tokenizer = folder._load("tokenizer")
    shutil.rmtree(model / "tokenizer")
    tokenizer.save_pretrained(model / "tokenizer")
    assert (model / "tokenizer" / "tokenizer.json").exists()
    assert torch.equal(ModelFolder(str(model), "float32", CPU).tokenise(PROMPTS), expected)


@pytest.mark.fault("a tokenizer without a token that padding needs")
def test_a_tokenizer_without_padding(model):
    path = model / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
    with pytest.raises(DitflowError, match="tokenizer/ cannot be loaded from .*: Asking to pad but"):
        ModelFolder(str(model), "float32", CPU).tokenise(PROMPTS)
