"""The words of the small models: one list for the captions of made clips and for the tokenizer."""

import string

COLOURS = {  # name: RGB, 0 ... 255
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (245, 218, 56),
    "green": (46, 160, 67),
    "cyan": (64, 200, 208),
    "blue": (38, 84, 200),
    "purple": (138, 56, 170),
    "white": (242, 242, 242),
    "black": (24, 24, 24),
}
SHAPES = ("circle", "square", "triangle")
LINKING_WORDS = ("a", "an", "on", "background")
WORDS = (*COLOURS, *SHAPES, *LINKING_WORDS)

# T5's own ids: padding 0, end of sentence 1, unknown 2
PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"
WORD_START = "\u2581"  # sentencepiece's mark for the space before a word
WORD_SCORE, CHARACTER_SCORE = -1.0, -10.0


def caption(colour: str, shape: str, background: str) -> str:
    """The caption of a made clip, such as "a red circle on a blue background"."""
    return f"{_with_article(colour)} {shape} on {_with_article(background)} background"


def _with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that are not above, each once, without punctuation after them."""
    words = [word.rstrip(string.punctuation) for word in prompt.split()]
    return list(dict.fromkeys(word for word in words if word and word.casefold() not in WORDS))


def tokenizer_model() -> bytes:
    """A sentencepiece unigram model: each word above is one piece, other words split into characters.

    Text is case-folded. Characters outside printable ASCII become the unknown token. Nothing is trained: the
    scores make a whole word always beat its letters, and the bytes are the same every time.
    """
    from sentencepiece import SentencePieceNormalizer
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto()
    kinds = ModelProto.SentencePiece
    model.pieces.add(piece=PADDING, score=0.0, type=kinds.CONTROL)
    model.pieces.add(piece=END, score=0.0, type=kinds.CONTROL)
    model.pieces.add(piece=UNKNOWN, score=0.0, type=kinds.UNKNOWN)
    for pieces, score in ((_words(), WORD_SCORE), (_characters(), CHARACTER_SCORE)):
        for piece in pieces:
            model.pieces.add(piece=piece, score=score, type=kinds.NORMAL)

    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.unk_id, model.trainer_spec.bos_id = 2, -1
    normalizer = SentencePieceNormalizer(rule_name="nmt_nfkc_cf")
    model.normalizer_spec.ParseFromString(normalizer.serialized_normalizer_spec())
    return model.SerializeToString(deterministic=True)


def vocabulary_size() -> int:
    """Number of pieces: padding, end and unknown, words, characters."""
    return 3 + len(_words()) + len(_characters())


def _words() -> list[str]:
    return [WORD_START + word for word in WORDS]


def _characters() -> list[str]:
    return [WORD_START, *string.ascii_lowercase, *string.digits, *string.punctuation]
