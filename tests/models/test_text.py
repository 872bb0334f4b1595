"""T5: the encoder with its blocks brought one by one, and embeddings kept from run to run."""

import logging
import os
import shutil

import pytest
import torch

from ditflow.jobs import prompt_cache as prompts
from ditflow.memory.streamed import Streamed
from ditflow.models.cogvideox.text import blocks, encode_tokens, tokenise
from ditflow.models.loading import ModelFolder

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "a blue square and a green circle", "")


@pytest.fixture
def folder(small_folder):
    return ModelFolder(str(small_folder), "float32", CPU)


@pytest.fixture
def tokens(folder):
    return tokenise(folder.tokenizer(), PROMPTS, 16)


def test_long_prompt_is_cut_with_a_warning(folder, caplog):
    with caplog.at_level(logging.WARNING, "ditflow"):
        tokenise(folder.tokenizer(), ["a red circle"], 16)
        assert not caplog.records
        cut = tokenise(folder.tokenizer(), ["a red circle", "a red circle " * 20], 16)
    assert "longer than the model's 16 tokens" in caplog.text
    assert caplog.text.count("circle") == 15  # of 20; the last token is the end of the text
    assert cut.shape == (2, 16)


def test_prompts_together_are_prompts_alone(folder, tokens):
    encoder = folder.text_encoder()
    together = encode_tokens(encoder, tokens)
    alone = torch.cat([encode_tokens(encoder, row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # with float16 some weights are in float32
def test_streamed_encoder_is_the_resident_one(small_folder, tokens, dtype):
    folder = ModelFolder(str(small_folder), dtype, CPU)
    expected = encode_tokens(folder.text_encoder(), tokens)
    encoder = folder.text_encoder()
    weights = Streamed(blocks(encoder), CPU, 0, host="pageable")
    assert len(blocks(encoder)) == 2
    pool = {buffer.untyped_storage().data_ptr() for buffer in weights.device_buffers()}
    places = []
    for block in blocks(encoder):
        block.register_forward_hook(
            lambda block, *_: places.append({p.untyped_storage().data_ptr() for p in block.parameters()})
        )
    assert torch.equal(encode_tokens(encoder, tokens, weights), expected)
    assert torch.equal(encode_tokens(encoder, tokens, weights), expected)
    assert len(places) == 4
    assert all(place <= pool for place in places)


class Noted:
    """Weights that are there; notes when each block is asked for, and the end of the walk."""

    def __init__(self):
        self.notes = []

    def walk(self, order):
        for index in order:
            self.notes.append(index)
            yield index
        self.notes.append("end")


def test_walk_ends_and_nothing_stays_on_the_encoder(folder, tokens):
    encoder, weights = folder.text_encoder(), Noted()
    for index, block in enumerate(blocks(encoder)):
        block.register_forward_hook(lambda *_, index=index: weights.notes.append(f"{index} computed"))
    encode_tokens(encoder, tokens, weights)
    expected = [0, "0 computed", 1, "1 computed", "end"]
    assert weights.notes == expected
    with pytest.raises(IndexError):
        encode_tokens(encoder, tokens + 10**6, weights)  # no such tokens
    assert weights.notes == expected
    encode_tokens(encoder, tokens)
    assert weights.notes == [*expected, "0 computed", "1 computed"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ditflow" / "prompts"


@pytest.fixture
def encode(folder):
    """Encodes, and notes how many texts it was given."""
    encoder = folder.text_encoder()

    def encode(tokens):
        encode.calls.append(len(tokens))
        return encode_tokens(encoder, tokens)

    encode.calls = []
    return encode


def fields(texts):
    return [texts.prompt, texts.negative_prompt, texts.source_prompt]


def test_second_run_encodes_nothing(folder, tokens, encode, cache):
    expected = encode_tokens(folder.text_encoder(), tokens).split(1)
    first, second = (prompts.texts(folder, tokens, encode) for _ in range(2))
    assert encode.calls == [3]
    for texts in (first, second):
        assert all(map(torch.equal, fields(texts), expected))
    assert len(list(cache.iterdir())) == 3


def test_what_is_new_is_encoded_alone_and_once(folder, tokens, encode, cache):
    prompts.texts(folder, tokens, encode)
    again = tokenise(folder.tokenizer(), ("a green square", PROMPTS[1], "a green square"), 16)
    texts = prompts.texts(folder, again, encode)
    assert encode.calls == [3, 1]
    expected = encode_tokens(folder.text_encoder(), again).split(1)
    for found, wanted in zip(fields(texts), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_another_precision_or_encoder_is_another_embedding(small_folder, tokens, tmp_path, encode, cache):
    shutil.copytree(small_folder, tmp_path / "model")

    def run(dtype="float32"):
        prompts.texts(ModelFolder(str(tmp_path / "model"), dtype, CPU), tokens, encode)
        return len(encode.calls)

    assert [run(), run(), run("float16"), run("float16")] == [1, 1, 2, 2]
    weights = tmp_path / "model" / "text_encoder" / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert [run(), run()] == [3, 3]
    (tmp_path / "model" / "vae" / "config.json").touch()
    assert run() == 3


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "other", "cut"])
def test_damaged_embedding_is_made_anew(folder, tokens, encode, cache, damage):
    expected = prompts.texts(folder, tokens, encode)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:-10] if damage is None else damage)
    for _ in range(2):
        found = prompts.texts(folder, tokens, encode)
        assert all(map(torch.equal, fields(found), fields(expected)))
    assert encode.calls == [3, 3]
    assert len(list(cache.iterdir())) == 3


def test_cache_that_cannot_be_written_is_done_without(folder, tokens, encode, cache, caplog):
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    with caplog.at_level(logging.INFO):
        first, second = (prompts.texts(folder, tokens, encode) for _ in range(2))
    assert all(map(torch.equal, fields(first), fields(second)))
    assert encode.calls == [3, 3]
    assert not caplog.records
