"""T5: tokenising, and the encoder with streamed blocks."""

import itertools
import logging
import shutil

import pytest
import torch

from ditflow.errors import DitflowError, SettingsError
from ditflow.memory.streamed import Streamed
from ditflow.models.loading import ModelFolder
from ditflow.small.vocabulary import COLOURS, SHAPES, caption

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "a blue square and a green circle", "")


@pytest.fixture
def folder(small_folder):
    return ModelFolder(str(small_folder), "float32", CPU)


@pytest.fixture
def tokens(folder):
    return folder.tokenise(PROMPTS)


def test_long_prompt_is_cut_with_a_warning(folder, caplog):
    with caplog.at_level(logging.WARNING, "ditflow"):
        folder.tokenise(["a red circle"])
        assert not caplog.records
        cut = folder.tokenise(["a red circle", "a red circle " * 20])
    assert "longer than the model's 16 tokens" in caplog.text
    assert caplog.text.count("circle") == 15  # of 20; the last token is the end of the text
    assert cut.shape == (2, 16)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("красный circle на blue", "красный на"),
        ("a café, 🙂 and a red circle", "café, 🙂"),
        ("a 一只cat a 一只cat", "一只cat"),
    ],
)
def test_unknown_words_are_named(folder, caplog, prompt, words):
    with caplog.at_level(logging.WARNING, "ditflow"):
        folder.tokenise([prompt, ""])
        folder.tokenise([prompt, ""])
    (record,) = caplog.records
    assert f"left out: '{words}';" in record.getMessage()


@pytest.mark.fault("a tokenizer without its vocabulary")
def test_a_tokenizer_without_its_vocabulary_is_refused(small_folder, tmp_path):
    model = shutil.copytree(small_folder, tmp_path / "model")
    (model / "tokenizer" / "spiece.model").unlink()
    with pytest.raises(DitflowError, match="tokenizer/ has no vocabulary .spiece.model or tokenizer"):
        ModelFolder(str(model), "float32", CPU).tokenise(PROMPTS)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("prompt", ["一只猫在跑", "Красный круг, синий фон!", "🙂 …", "ü"])
def test_a_prompt_of_unknown_words_is_refused(folder, prompt, which):
    prompts = ["a red circle", "a red circle"]
    prompts[which] = prompt
    with pytest.raises(SettingsError, match="knows none of the prompt's words, '.*': write it in English"):
        folder.tokenise(prompts)


@pytest.mark.fault("a prompt of which nothing is read")
@pytest.mark.parametrize("prompt", ["\u200b\u200b", "<pad> <pad>", "</s>"])
def test_a_prompt_of_which_nothing_is_read_is_refused(folder, prompt):
    with pytest.raises(SettingsError, match="reads nothing in the prompt '.*': write words in English"):
        folder.tokenise([prompt])


def test_the_small_models_know_their_captions_and_plain_text(caplog):
    captions = [caption(*words) for words in itertools.product(COLOURS, SHAPES, COLOURS)]
    others = ["", "   ", "...", "A RED Circle, moving -- fast!\tNow (no.2)\n", "ｗｉｄｅ", "a\u200bb"]
    with caplog.at_level(logging.WARNING, "ditflow"):
        for name in ("small", "small-sincos"):
            ModelFolder(name, "float32", CPU).tokenise([text for text in captions + others if len(text) < 50])
    assert not [record for record in caplog.records if "unknown" in record.getMessage()]


def test_prompts_encoded_together_equal_prompts_encoded_alone(folder, tokens):
    encoder = folder.text_encoder()
    together = encoder.encode(tokens)
    alone = torch.cat([encoder.encode(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # with float16 some weights are in float32
def test_the_streamed_encoder_equals_the_resident_one(small_folder, tokens, dtype):
    folder = ModelFolder(str(small_folder), dtype, CPU)
    expected = folder.text_encoder().encode(tokens)
    encoder = folder.text_encoder()
    weights = Streamed(encoder.layers, CPU, 0, host="pageable")
    assert len(encoder.layers) == 2
    pool = {buffer.untyped_storage().data_ptr() for buffer in weights.device_buffers()}
    places = []
    for block in encoder.layers:
        block.register_forward_hook(
            lambda block, *_: places.append({p.untyped_storage().data_ptr() for p in block.parameters()})
        )
    assert torch.equal(encoder.encode(tokens, weights), expected)
    assert torch.equal(encoder.encode(tokens, weights), expected)
    assert len(places) == 4
    assert all(place <= pool for place in places)


class RecordedWeights:
    """Resident weights that record when a block is asked for, and the end of the walk."""

    def __init__(self):
        self.notes = []

    def walk(self, order):
        for index in order:
            self.notes.append(index)
            yield index
        self.notes.append("end")


def test_walk_ends_and_nothing_stays_on_the_encoder(folder, tokens):
    encoder, weights = folder.text_encoder(), RecordedWeights()
    for index, block in enumerate(encoder.layers):
        block.register_forward_hook(lambda *_, index=index: weights.notes.append(f"{index} computed"))
    encoder.encode(tokens, weights)
    expected = [0, "0 computed", 1, "1 computed", "end"]
    assert weights.notes == expected
    with pytest.raises(IndexError):
        encoder.encode(tokens + 10**6, weights)  # no such tokens
    assert weights.notes == expected
    encoder.encode(tokens)
    assert weights.notes == [*expected, "0 computed", "1 computed"]
