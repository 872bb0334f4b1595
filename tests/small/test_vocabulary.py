"""The words that the small models know."""

import pytest

from ditflow.models.loading import ModelFolder
from ditflow.small.vocabulary import COLOURS, SHAPES, caption, unknown_words


@pytest.mark.parametrize(
    "prompt, unknown",
    [
        ("", []),
        ("A Red circle, on a blue background.", []),
        ("a purple dog runs on a red background", ["dog", "runs"]),
        ("dogs and dogs...", ["dogs", "and"]),
        ("a blue-green circle", ["blue-green"]),
    ],
)
def test_unknown_words_are_named(prompt, unknown):
    assert unknown_words(prompt) == unknown


def test_captions_have_no_unknown_words():
    assert not any(unknown_words(caption(c, s, b)) for c in COLOURS for s in SHAPES for b in COLOURS)


def test_known_words_are_whole_pieces_of_the_tokenizer():
    """And unknown ones are spelt, so the tokenizer itself cannot tell."""
    import torch

    folder = ModelFolder("small", "float32", torch.device("cpu"))

    def pieces(prompt):
        return int((folder.tokenise([prompt]) > 1).sum())

    assert pieces("a red circle, on a blue background") == 8  # the comma is one
    assert pieces("red dog") == 1 + 4  # the space before a word is one
