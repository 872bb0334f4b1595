"""Checks the files of a T5 tokenizer before the library reads them: it would lose words without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError
from ditflow.files import regular_file
from ditflow.limits import VOCABULARY_BYTES
from ditflow.models.t5.config import PIECE, T5_VOCABULARY, TOKEN, TOKENS
from ditflow.models.trust import read_json
from ditflow.schema import Either, Keys, ListOf, MapOf, Number, OneOf, Whole, check

FILES = {  # by name; each may be absent
    "special_tokens_map.json": Keys(
        {
            **dict.fromkeys(("pad_token", "eos_token", "unk_token"), TOKEN),
            "additional_special_tokens": ListOf(TOKEN, 0, 10_000),
        }
    ),
    "added_tokens.json": MapOf(Whole(0, TOKENS)),
    "tokenizer.json": Keys(
        {
            "model": Keys(
                {
                    "type": OneOf(("Unigram",)),
                    "unk_id": Whole(0, TOKENS),
                    "vocab": ListOf(ListOf(Either((PIECE, Number(-1e6, 1e6))), 2, 2), 1, TOKENS),
                },
                required=("type", "vocab"),
            ),
            "added_tokens": ListOf(
                Keys({"id": Whole(0, TOKENS), "content": PIECE}, required=("id", "content")), 0, 10_000
            ),
        },
        required=("model",),
    ),
}
VOCABULARY = "spiece.model"


def check_tokenizer(folder: Path, encoder: Mapping[str, Any]) -> None:
    """Check a tokenizer's files, and that its tokens are those of a text encoder with this configuration.

    Raises DitflowError, which names the file, what was found and what is expected, and ValueError for a file
    that is not of its format.
    """
    for name, rule in FILES.items():
        path = folder / name
        if path.exists():
            check(rule, path, read_json(path, VOCABULARY_BYTES))
    known, path = encoder.get("vocab_size", T5_VOCABULARY), folder / VOCABULARY
    if path.exists() and (pieces := _pieces(path)) > known:
        raise DitflowError(
            f"{path} holds {pieces} words, expected at most {known}, as text_encoder/config.json says: give "
            "the tokenizer of this model"
        )


def _pieces(path: Path) -> int:
    """How many words a SentencePiece model holds. Raises DitflowError if it is damaged or cut short."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    content = regular_file(path).read_bytes() if path.stat().st_size <= VOCABULARY_BYTES else b""
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise DitflowError(f"{path} is no SentencePiece model, or is cut short: download it again") from None
    # they follow the words, so that they are what is lost first
    for part in ("trainer_spec", "normalizer_spec"):
        if not model.HasField(part):
            raise DitflowError(f"{path} lacks its {part}, so it is cut short: download it again")
    found, expected = len(model.pieces), model.trainer_spec.vocab_size
    if found < expected:
        raise DitflowError(f"{path} holds {found} words, expected {expected}: download it again")
    return found
