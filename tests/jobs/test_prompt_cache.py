"""Prompt embeddings are cached from run to run."""

import logging
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ditflow.jobs.prompt_cache import encode_texts
from ditflow.models.loading import ModelFolder
from ditflow.run_folder.checkpoint import checksum

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "a blue square and a green circle", "")


@pytest.fixture
def folder(small_folder):
    return ModelFolder(str(small_folder), "float32", CPU)


@pytest.fixture
def tokens(folder):
    return folder.tokenise(PROMPTS)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ditflow" / "prompts"


@pytest.fixture
def encode(folder):
    """Encodes, and records how many texts each call gets."""
    encoder = folder.text_encoder()

    def encode(tokens):
        encode.calls.append(len(tokens))
        return encoder.encode(tokens)

    encode.calls = []
    return encode


def fields(texts):
    return [texts.prompt, texts.negative_prompt, texts.source_prompt]


def test_second_run_encodes_nothing(folder, tokens, encode, cache):
    expected = folder.text_encoder().encode(tokens).split(1)
    first, second = (encode_texts(folder, tokens, encode) for _ in range(2))
    assert encode.calls == [3]
    for texts in (first, second):
        assert all(map(torch.equal, fields(texts), expected))
    assert len(list(cache.iterdir())) == 3


def test_only_new_prompts_are_encoded_each_once(folder, tokens, encode, cache):
    encode_texts(folder, tokens, encode)
    again = folder.tokenise(("a green square", PROMPTS[1], "a green square"))
    texts = encode_texts(folder, again, encode)
    assert encode.calls == [3, 1]
    expected = folder.text_encoder().encode(again).split(1)
    for found, wanted in zip(fields(texts), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_another_precision_or_encoder_is_another_embedding(small_folder, tokens, tmp_path, encode, cache):
    shutil.copytree(small_folder, tmp_path / "model")

    def run(dtype="float32"):
        encode_texts(ModelFolder(str(tmp_path / "model"), dtype, CPU), tokens, encode)
        return len(encode.calls)

    assert [run(), run(), run("float16"), run("float16")] == [1, 1, 2, 2]
    weights = tmp_path / "model" / "text_encoder" / "model.safetensors"
    weights.touch()  # the same bytes
    assert run() == 2
    status, whole = weights.stat(), weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [run(), run()] == [3, 3]
    vocabulary = next(path for path in (tmp_path / "model" / "tokenizer").iterdir() if path.suffix == ".json")
    vocabulary.write_text(vocabulary.read_text() + " ")
    assert [run(), run()] == [4, 4]
    (tmp_path / "model" / "vae" / "config.json").write_text("{}")
    assert run() == 4


def test_a_moved_encoder_is_the_same(small_folder, folder, tokens, tmp_path, encode, cache):
    encode_texts(folder, tokens, encode)
    shutil.copytree(small_folder, tmp_path / "copy")
    encode_texts(ModelFolder(str(tmp_path / "copy"), "float32", CPU), tokens, encode)
    assert encode.calls == [3]


def poison(tensors, metadata):
    tensors["encoded"].view(-1)[0] = float("nan")


def halve(tensors, metadata):
    tensors["encoded"] = tensors["encoded"][:, :3].contiguous()


def double(tensors, metadata):
    tensors["encoded"] = tensors["encoded"] * 2


def rename(tensors, metadata):
    tensors["other"] = tensors.pop("encoded")


@pytest.mark.parametrize(
    "change, resealed",
    [
        *((each, False) for each in (poison, halve, double, rename)),
        (poison, True),
        (halve, True),
        (rename, True),
    ],
)
@pytest.mark.fault("a cached prompt with other content")
def test_an_entry_that_is_not_as_it_was_written(folder, tokens, encode, cache, change, resealed):
    expected = encode_texts(folder, tokens, encode)
    for path in cache.iterdir():
        with safe_open(path, "pt") as file:
            tensors, metadata = {"encoded": file.get_tensor("encoded").clone()}, file.metadata()
        change(tensors, metadata)
        if resealed:
            metadata["checksum"] = checksum({path.stem: next(iter(tensors.values()))}, {})
        save_file(tensors, path, metadata)
    for _ in range(2):
        found = encode_texts(folder, tokens, encode)
        assert all(map(torch.equal, fields(found), fields(expected)))
    assert encode.calls == [3, 3]


@pytest.mark.fault("a cached prompt in the place of another")
def test_entries_that_were_swapped(folder, tokens, encode, cache):
    expected = encode_texts(folder, tokens, encode)
    first, second, _ = cache.iterdir()
    shutil.copy(first, second)
    found = encode_texts(folder, tokens, encode)
    assert all(map(torch.equal, fields(found), fields(expected)))
    assert encode.calls == [3, 1]


def test_a_result_with_nan_is_not_cached(folder, tokens, cache):
    def encode(tokens):
        return torch.full((len(tokens), 3, 4), float("nan"))

    assert encode_texts(folder, tokens, encode).prompt.isnan().all()
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "other", "cut"])
def test_a_damaged_embedding_is_encoded_again(folder, tokens, encode, cache, damage):
    expected = encode_texts(folder, tokens, encode)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:-10] if damage is None else damage)
    for _ in range(2):
        found = encode_texts(folder, tokens, encode)
        assert all(map(torch.equal, fields(found), fields(expected)))
    assert encode.calls == [3, 3]
    assert len(list(cache.iterdir())) == 3


@pytest.mark.fault("a cache entry that is a named pipe or a folder")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_an_entry_that_is_no_file(folder, tokens, encode, cache, make):
    expected = fields(encode_texts(folder, tokens, encode))
    for entries in (cache, cache.parent / "weights"):
        for entry in list(entries.iterdir()):
            entry.unlink()
            make(entry)
    assert all(map(torch.equal, fields(encode_texts(folder, tokens, encode)), expected))
    assert encode.calls == [3, 3]


def test_works_without_a_writable_cache(folder, tokens, encode, cache, caplog):
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    with caplog.at_level(logging.INFO):
        first, second = (encode_texts(folder, tokens, encode) for _ in range(2))
    assert all(map(torch.equal, fields(first), fields(second)))
    assert encode.calls == [3, 3]
    assert not caplog.records
